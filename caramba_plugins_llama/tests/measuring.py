"""A run that only measures its teacher, through the command line: what it says, and what it leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caramba_core.cli import main

__all__ = ["caramba", "measure", "only_report", "refused"]

_MANIFEST = """\
version: 1
name: measured
model: MODEL
groups:
  - name: g
    teacher: TEACHER
    data: {heldout: heldout.npy}
    runs: [{id: measure, mode: eval, eval: {windows: 1, context: 16}}]
"""


def measure(folder: Path, teacher: str, output: str = "runs", *, model: str = "{from: teacher}") -> int:
    """The exit code; ``teacher`` and ``model`` as a manifest has them, names of files lead from ``folder``."""
    np.save(folder / "heldout.npy", np.arange(64, dtype=np.uint16) % 97)
    (folder / "manifest.yml").write_text(_MANIFEST.replace("TEACHER", teacher).replace("MODEL", model))
    return caramba("run", str(folder / "manifest.yml"), "--output", str(folder / output))


def caramba(*arguments: str) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def refused(folder: Path, teacher: str, words: str, capsys: pytest.CaptureFixture[str], *, code: int = 2) -> str:
    """The report; the run ended with this code, said nothing else, and left nothing that was not there."""
    before = {path.relative_to(folder) for path in folder.rglob("*")} | {Path("heldout.npy"), Path("manifest.yml")}
    ended = measure(folder, teacher)
    told = only_report(capsys)
    assert ended == code, told
    assert words in told
    assert {path.relative_to(folder) for path in folder.rglob("*")} == before
    return told


def only_report(capsys: pytest.CaptureFixture[str]) -> str:
    """One report on stderr, with its place in the manifest where it has one, and nothing else, on stdout neither."""
    said, told = capsys.readouterr()
    first, *more = told.splitlines()
    assert said == ""
    assert "error: " in first, told
    assert all(line.startswith("  ") for line in more), told
    return told
