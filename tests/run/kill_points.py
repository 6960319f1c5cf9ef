"""Kills a run at system calls that touch its files, one after the other, and goes on with ``--resume``.

``python -m tests.run.kill_points MANIFEST POINTS`` does a manifest's runs once, then ``POINTS`` times with a SIGKILL at
an event of their own, spread evenly; it prints as JSON how many events there are and what differed from the first time.
Each attempt is a fork of one process that has imported what the first one needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from caramba_core.cli import main

EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree", "shutil.move")


def attempt(manifest: Path, runs: Path, *, kill_at: int | None, noted: Path | None = None) -> int:
    """The exit status of a fork that does the manifest's runs; negative where a signal ended it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in EVENTS and any(str(runs) in str(one) for one in arguments):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    code = 1
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            main(["run", str(manifest), "--output", str(runs), "--resume"])
        except SystemExit as ended:
            code = int(ended.code or 0)
    if noted is not None:
        noted.write_text(json.dumps({"events": seen, "modules": list(sys.modules)}))
    if code:
        sys.stderr.write(said.getvalue())
        sys.stderr.flush()
    os._exit(code)


def result(runs: Path) -> dict[str, Any]:
    """Weights and metrics of every run, and files that writers left behind."""
    found: dict[str, Any] = {}
    for path in sorted(runs.rglob("*")):
        name = str(path.relative_to(runs))
        if path.name.startswith("."):
            found[name] = "left behind"
        elif path.name == "model.safetensors":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name == "report.json":
            found[name] = "there"
        elif path.name == "metrics.jsonl":
            lines = map(json.loads, path.read_text().splitlines())
            found[name] = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
        elif path.name == "summary.json":
            summary = json.loads(path.read_text())
            found[name] = [summary.get("perplexity"), summary.get("steps")]
    return found


def differing(manifest: Path, points: int) -> dict[str, Any]:
    """What is not as it is without a kill, by the event at which the run was killed."""
    torch.set_num_threads(1)
    folder = manifest.parent
    whole, noted = folder / "whole", folder / "noted.json"
    assert attempt(manifest, whole, kill_at=None, noted=noted) == 0
    expected, (events, modules) = result(whole), json.loads(noted.read_text()).values()
    for name in modules:
        with contextlib.suppress(ImportError):  # some are made by others, and have no file
            importlib.import_module(name)
    wrong: dict[str, Any] = {}
    for point in range(points):
        at, runs = 1 + point * events // points, folder / "killed"
        first = attempt(manifest, runs, kill_at=at)
        again = attempt(manifest, runs, kill_at=None)
        found = result(runs)
        if first != -signal.SIGKILL or again or found != expected:
            names = [name for name in {*found, *expected} if found.get(name) != expected.get(name)]
            wrong[str(at)] = {"first": first, "again": again, "differs": sorted(names)}
        shutil.rmtree(runs)
    return {"events": events, "wrong": wrong}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(differing(Path(sys.argv[1]), int(sys.argv[2]))))
