"""Ten billion token ids: opened by a sample, checked as they are read."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from caramba_core.cli import main
from tests.distributions import ROOT
from tests.plugins.test_hooks_in_runs import MANIFEST

COUNT = 10_000_000_000
HALF = COUNT // 2
MAPPED_AT_ONCE = 16 * 4096
"""Bytes that Linux maps at a page fault in a file."""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A pretraining manifest over a sparse array of zeros, with one id that is none behind its middle."""
    header = {"descr": "<u2", "fortran_order": False, "shape": (COUNT,)}
    with (tmp_path / "tokens.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.seek(start + 2 * (HALF + 70_000))
        file.write(np.array([60_000], dtype="<u2").tobytes())
    os.truncate(tmp_path / "tokens.npy", start + 2 * COUNT)
    (tmp_path / "tokens.npy.json").write_text(f'{{"vocab_size": 64, "tokens": {COUNT}, "sha256": "{"0" * 64}"}}')
    (tmp_path / "tiny.yml").write_text(MANIFEST)
    return tmp_path / "tiny.yml"


def caramba(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def faults() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt


def test_opening_reads_a_sample(manifest: Path) -> None:
    assert caramba("run", manifest, "--dry-run") == 0  # everything is imported by now
    before = faults()
    assert caramba("run", manifest, "--dry-run") == 0
    assert (faults() - before) * MAPPED_AT_ONCE < 0.1 * 2 * COUNT


def test_an_id_that_is_none_is_found_as_it_is_read(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The manifest evaluates in the middle of its tokens."""
    heldout = "groups.0.data.heldout={type: tokens, path: tokens.npy, part: [0.5, 1.0]}"
    changes = ("--set", heldout, "--set", "groups.0.eval.windows=5000")
    assert caramba("run", manifest, "--dry-run", *changes) == 0
    assert caramba("run", manifest, "--output", manifest.parent / "runs", *changes) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"tokens.npy [0.5, 1] holds token id 60000 at {HALF + 70_000}, beyond the vocabulary" in said


def test_the_note_says_how_many(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note = manifest.parent / "tokens.npy.json"
    note.write_text('{"tokens": 3}')
    assert caramba("run", manifest, "--dry-run") == 2
    assert f"holds {COUNT} tokens" in capsys.readouterr().err


def test_shards_are_opened_without_being_read() -> None:
    """In a process of its own, whose peak memory is that of Python and numpy too."""
    command = [sys.executable, str(ROOT / "bench/large_tokens.py"), "--tokens", str(COUNT)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(done.stdout)
    assert found["tokens"] == COUNT
    assert found["peak_bytes"] < 200_000_000
