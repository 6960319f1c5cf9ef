"""Runs killed (SIGKILL) at random moments and resumed, beside undisturbed ones, as JSON lines.

    python bench/kills.py [--moments 100] [--pairs 33] [--seed 0]

A tiny model learns a mixture of files with documents on the CPU: two passes a step, a checkpoint behind every step,
written while the next one is computed, evaluations, spikes that are skipped, checkpoints kept by step and by
perplexity.  A moment is drawn evenly over the time that the undisturbed run takes, from the start of its process to its
end.  ``--pairs`` of the ``--moments`` are in runs of two processes, which hold copies of the model and parts of it in
turn; one of them is killed, or both are, and the one that is left gets SIGTERM, as under torchrun.  Weights, optimizer
states, metrics and results have to be the same bits as those of the undisturbed run, with no file left behind: what is
not so is named, and the exit status is 1.  ``saving`` counts kills that left a checkpoint, or another file, unfinished.

Each process is a fork of one that has imported what a run needs.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from caramba_core.cli import main as caramba

KINDS: Final = {"one": (1, "false"), "copies": (2, "false"), "parts": (2, "true")}
"""Processes of a run, and whether they divide the weights."""

GROUP: Final = """
  - name: {kind}
    data:
      train:
        type: mixture
        parts:
          - {{weight: 2, data: {{type: tokens, path: a.npy, documents: true}}}}
          - {{weight: 1, data: {{type: tokens, path: "[bc].npy", documents: true}}}}
      heldout: a.npy
    eval: {{context: 16, windows: 2}}
    runs:
      - id: run
        mode: train
        steps: {steps}
        train: {{strategy: pretrain, device: cpu, lr: 1.0e-2, batch_size: 2, accumulate: 2, context: 16,
                evaluate_every: 3, checkpoint_every: 1, checkpoint_async: true,
                keep: {{last: 1, every: 4, best: perplexity}}, on_nonfinite: skip 2, skip_spikes: 1.05,
                parallel: {{data: {processes}, shard: {shard}}}}}
"""
MANIFEST: Final = """
version: 1
name: killed
model:
  type: transformer
  tied_embeddings: true
  embedder: {type: token, vocab_size: 64, d_model: 16}
  topology:
    type: stacked
    layers:
      - {type: residual, layers: [{type: rms_norm}, {type: gqa, n_heads: 2, n_kv_heads: 1, head_dim: 8}]}
      - {type: rms_norm}
groups:"""
ENDS: Final = 30.0
"""Seconds in which the other process of a killed one has to end: torchrun kills it then."""


def say(**record: Any) -> None:
    """One JSON line."""
    print(json.dumps(record), flush=True)


def write(folder: Path, steps: int) -> Path:
    """The manifest and its token arrays, with several epochs of each part."""
    for name, size in (("a", 150), ("b", 90), ("c", 90)):
        ids = np.random.default_rng(ord(name)).integers(0, 60, size)
        np.save(folder / f"{name}.npy", ids.astype(np.uint16))
        (folder / f"{name}.npy.json").write_text('{"end_of_text": 0}')
    groups = [
        GROUP.format(kind=kind, processes=count, shard=shard, steps=steps) for kind, (count, shard) in KINDS.items()
    ]
    (folder / "manifest.yml").write_text(MANIFEST + "".join(groups))
    return folder / "manifest.yml"


def begin(manifest: Path, runs: Path, kind: str, noted: Path | None = None) -> list[BaseProcess]:
    """The processes of a run, just started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runs.mkdir(parents=True, exist_ok=True)
    count, _ = KINDS[kind]
    fork = multiprocessing.get_context("fork")
    processes: list[BaseProcess] = []
    for rank in range(count):
        process = fork.Process(target=_run, args=(manifest, runs, kind, rank, port, noted))
        process.start()
        processes.append(process)
    return processes


def _run(manifest: Path, runs: Path, kind: str, rank: int, port: int, noted: Path | None) -> None:
    """``caramba run --resume``, its output in a file."""
    count, _ = KINDS[kind]
    atexit._clear()  # what is this process's parent's
    os.environ["CARAMBA_RUN_REPORT"] = "0"  # drawing it takes longer than the run
    if count > 1:
        os.environ.update(WORLD_SIZE=str(count), RANK=str(rank), LOCAL_RANK=str(rank))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    said = os.open(runs.parent / f"said_{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    try:
        caramba(["run", str(manifest), "--group", kind, "--output", str(runs), "--resume"])
    finally:
        if noted is not None:
            noted.write_text(json.dumps(list(sys.modules)))
        atexit._run_exitfuncs()  # the first process waits there for the other, and a fork ends without it


def end(processes: Sequence[BaseProcess], within: float | None = None) -> list[int | None]:
    """Their exit statuses, once they have ended; ``None`` for one that did not, and is killed."""
    until = None if within is None else time.monotonic() + within
    codes: list[int | None] = []
    for process in processes:
        process.join(None if until is None else max(0.0, until - time.monotonic()))
        codes.append(process.exitcode)
        process.kill()
        process.join()
    return codes


def kill(processes: Sequence[BaseProcess], chosen: Sequence[int], moment: float) -> list[int | None] | None:
    """Kill the chosen ones at a moment; the others end as under torchrun.  ``None`` where one had ended before."""
    until = time.monotonic() + moment
    processes[chosen[0]].join(moment)
    time.sleep(max(0.0, until - time.monotonic()))
    for number in chosen:
        processes[number].kill()
    for number in chosen:
        processes[number].join()
    if any(processes[number].exitcode != -signal.SIGKILL for number in chosen):
        end(processes)
        return None
    for process in processes:
        process.terminate()
    return end(processes, ENDS)


def result(runs: Path) -> dict[str, Any]:
    """What a run left: weights and states by their bits, metrics and results without times, files left behind."""
    found: dict[str, Any] = {}
    for path in sorted(runs.rglob("*")):
        name = str(path.relative_to(runs))
        if path.name.startswith("."):
            found[name] = "left behind"
        elif path.suffix in (".safetensors", ".npy"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name == "metrics.jsonl":
            lines = map(json.loads, path.read_text().splitlines())
            found[name] = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
        elif path.name == "summary.json":
            summary = json.loads(path.read_text())
            found[name] = [summary.get(key) for key in ("perplexity", "steps", "tokens", "steps_left_out")]
        elif path.name == "state.json" and path.parent.parent.name == "checkpoints":
            state = json.loads(path.read_text())
            found[name] = [state.get(key) for key in ("step", "samples", "tokens", "optimizer")]
        else:
            found[name] = "there"
    return found


def unfinished(runs: Path) -> bool:
    """Whether something was being written or removed."""
    return any(path.name.startswith(".") for path in runs.rglob("*"))


def main() -> None:
    """Undisturbed runs, then one moment after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=33, help="of the moments: in runs of two processes")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(options.seed)
    kinds = ["one"] * (options.moments - options.pairs)
    kinds += [("copies", "parts")[number % 2] for number in range(options.pairs)]
    say(torch=torch.__version__, cores=os.cpu_count(), options=vars(options))
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest, expected, seconds = write(folder, options.steps), dict[str, Any](), dict[str, float]()
        undisturbed = list(dict.fromkeys(kinds))
        for kind in (undisturbed[-1], *undisturbed):  # once more, so that what has to be imported is
            began, runs, noted = time.monotonic(), folder / "whole" / kind, folder / "modules.json"
            processes = begin(manifest, runs, kind, noted)
            if end(processes) != [0] * len(processes):
                raise SystemExit(_said(runs.parent))
            seconds[kind], expected[kind] = time.monotonic() - began, result(runs)
            shutil.rmtree(runs)
            for module in json.loads(noted.read_text()):
                with contextlib.suppress(ImportError):  # some are made by others, and have no file
                    importlib.import_module(module)
        for kind in undisturbed:
            say(kind=kind, undisturbed_seconds=round(seconds[kind], 2), files=len(expected[kind]))
        tally = {kind: {"killed": 0, "saving": 0, "wrong": 0} for kind in expected}
        for kind in kinds:
            wrong += not _attempt(manifest, kind, expected[kind], seconds[kind], draw, tally[kind])
    say(kills=sum(one["killed"] for one in tally.values()), wrong=wrong, by_kind=tally)
    sys.exit(wrong > 0)


def _attempt(
    manifest: Path, kind: str, expected: dict[str, Any], seconds: float, draw: random.Random, tally: dict[str, int]
) -> bool:
    """Kill a run, resume it, compare; whether its end is as expected."""
    runs, codes = manifest.parent / "killed" / kind, None
    count, _ = KINDS[kind]
    while codes is None:  # a run that ended before the moment was not killed
        shutil.rmtree(runs, ignore_errors=True)
        moment, chosen = draw.uniform(0, seconds), draw.choice([[0]] if count == 1 else [[0], [1], [0, 1]])
        codes = kill(begin(manifest, runs, kind), chosen, moment)
    tally["killed"] += 1
    tally["saving"] += unfinished(runs)
    again = end(begin(manifest, runs, kind), 20 * ENDS)
    found = result(runs)
    differs = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    if None in codes or any(again) or differs:
        tally["wrong"] += 1
        said = _said(runs.parent)
        say(kind=kind, moment=round(moment, 3), killed=chosen, codes=codes, again=again, differs=differs, said=said)
        return False
    return True


def _said(folder: Path) -> str:
    """The last words of a run's processes."""
    return "\n".join(path.read_text()[-1500:] for path in sorted(folder.glob("said_*.txt")))


if __name__ == "__main__":
    main()
