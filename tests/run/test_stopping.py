"""Signals, and folders that vanish: the step is finished and saved, and what to type next is said."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.prepared import Started, start

from .workspace import make_workspace


def command(manifest: Path, *arguments: str, file_size: int | None = None) -> Started:
    """``caramba run``."""
    output = str(manifest.parent / "runs")
    arguments = ("run", str(manifest), "--output", output, *arguments)
    return start("caramba_core", *arguments, cwd=manifest.parent, environment=os.environ, file_size=file_size)


def started(folder: Path, *arguments: str) -> Started:
    """``caramba run`` of very many steps, once it has trained some."""
    process = command(make_workspace(folder), "--set", "vars.steps=100000", *arguments)
    for line in process.stdout:  # a line of progress comes with the first step, also in a pipe
        if line.startswith("  half/finetune: "):
            return process
    raise AssertionError(process.ended().err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_and_saves_the_step(tmp_path: Path, number: signal.Signals) -> None:
    process = started(tmp_path)
    process.send_signal(number)
    ran = process.ended()
    assert ran.code == 128 + number
    assert f"stopped by {number.name}; the same command with --resume goes on" in ran.err
    folder = tmp_path / "runs" / "small" / "half" / "finetune"
    state = json.loads((folder / "state.json").read_text())
    assert state["status"] == "interrupted"
    newest = max((folder / "checkpoints").iterdir())
    assert newest.name == f"step_{state['step']:06d}"
    assert f"finetune stopped at step {state['step']}: stopped by {number.name}" in ran.out
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == state["step"]


def test_a_folder_that_is_removed_while_its_run_goes_on(tmp_path: Path) -> None:
    process = started(tmp_path)
    folder = tmp_path / "runs" / "small" / "half" / "finetune"
    while folder.exists():  # the run may write while it is removed
        shutil.rmtree(folder, ignore_errors=True)
    ran = process.ended()
    assert ran.code == 2, ran.err
    assert "removed meanwhile" in ran.err
    assert "internal" not in ran.err


@pytest.mark.parametrize("size", [100, 700, 2000, 5000, 20_000, 60_000, 120_000])
def test_no_room(tmp_path: Path, size: int) -> None:
    """Whatever file is the first that has no room: one sentence, code 5, and the run goes on once there is some."""
    manifest = make_workspace(tmp_path)
    text = manifest.read_text().replace("windows: 4", "windows: 8")
    text = text.replace("checkpoint_every: 2", "checkpoint_every: 2, checkpoint_async: true")
    manifest.write_text(text)
    limited = command(manifest, file_size=size).ended()
    assert limited.code in (0, 5), limited.err
    if limited.code:
        assert "a file would be larger than is allowed" in limited.err
        assert "Traceback" not in limited.err
    done = command(manifest, "--resume").ended()
    assert done.code == 0, done.err
    assert not list((tmp_path / "runs").rglob(".*"))
