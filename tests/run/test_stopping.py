"""Signals, and folders that vanish: the step is finished and saved, and what to type next is said."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .workspace import make_workspace


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """``caramba run`` of very many steps, once it has trained some."""
    manifest = make_workspace(folder)
    command = [sys.executable, "-m", "caramba_core", "run", str(manifest), "--output", str(folder / "runs")]
    process = subprocess.Popen(
        [*command, "--set", "vars.steps=100000", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:  # a line of progress comes with the first step, also in a pipe
        if line.startswith("  half/finetune: "):
            return process
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_and_saves_the_step(tmp_path: Path, number: signal.Signals) -> None:
    process = started(tmp_path)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}; the same command with --resume goes on" in err
    folder = tmp_path / "runs" / "small" / "half" / "finetune"
    state = json.loads((folder / "state.json").read_text())
    assert state["status"] == "interrupted"
    newest = max((folder / "checkpoints").iterdir())
    assert newest.name == f"step_{state['step']:06d}"
    assert f"finetune stopped at step {state['step']}: stopped by {number.name}" in out
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == state["step"]


def test_a_folder_that_is_removed_while_its_run_goes_on(tmp_path: Path) -> None:
    process = started(tmp_path)
    folder = tmp_path / "runs" / "small" / "half" / "finetune"
    while folder.exists():  # the run may write while it is removed
        shutil.rmtree(folder, ignore_errors=True)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2, err
    assert "removed meanwhile" in err
    assert "internal" not in err


@pytest.mark.parametrize("size", [100, 700, 2000, 5000, 20_000, 60_000, 120_000])
def test_no_room(tmp_path: Path, size: int) -> None:
    """Whatever file is the first that has no room: one sentence, code 5, and the run goes on once there is some."""
    manifest = make_workspace(tmp_path)
    text = manifest.read_text().replace("windows: 4", "windows: 8")
    manifest.write_text(text)
    command = [sys.executable, "-m", "caramba_core", "run", str(manifest), "--output", str(tmp_path / "runs")]
    settings = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True, "check": False}
    limited = subprocess.run(
        command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)), **settings
    )
    assert limited.returncode in (0, 5), limited.stderr
    if limited.returncode:
        assert "a file would be larger than is allowed" in limited.stderr
        assert "Traceback" not in limited.stderr
    done = subprocess.run([*command, "--resume"], **settings)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "runs").rglob(".*"))
