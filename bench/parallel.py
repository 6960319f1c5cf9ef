"""One process beside several that train together, on the GPUs of one machine, as JSON lines.

    python bench/parallel.py [--processes 2] [--parts speed,losses,resume,kill]
    python bench/parallel.py --device cpu --shape tiny --small tiny --steps 6 --compared 10

``speed``: ``pretrain`` and ``upcycle.global`` (of a DBA student from a teacher of random weights) with as many tokens a
process, by one process, by several that hold a copy each (``ddp``), and that hold parts (``fsdp``): tokens/s behind the
warm-up, and the share of what as many single processes would do.  ``losses``: those of pretraining with one global
batch, by one process in one pass and in as many as there are processes, and how far they differ.  In the shape
``--small``: ``resume`` begins with several processes and goes on with one, and the reverse, beside a run of one;
``kill`` ends one process with SIGKILL, counts the seconds until all have ended and the lines that say so, and resumes.

Every run is ``caramba run`` (under torchrun where it has several processes).  Those of ``speed`` and ``losses`` are
left behind their last step, where they would write a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.training import CACHED, ROWS, SHAPES, manifest  # noqa: E402 - this file runs as a script, too

KINDS: Final = {"ddp": False, "fsdp": True}


def say(**record: Any) -> None:
    """One JSON line."""
    print(json.dumps(record), flush=True)


class Bench:
    """What the parts share: shapes, data, and how a run is started and read."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.context = 64 if options.shape == "tiny" else 2048
        self.batch = 2 if options.shape == "tiny" else options.batch
        generator = np.random.default_rng(0)
        windows = max(options.steps * self.batch * options.processes, options.compared * self.batch) + 1
        for shape in {options.shape, options.small}:  # ids as frequent as words: the loss has something to learn
            size = SHAPES[shape]["vocabulary"]
            ids = np.minimum(generator.zipf(1.2, windows * self.context + 1) - 1, size - 1)
            np.save(folder / f"{shape}.npy", ids.astype(np.uint32))

    def teacher(self, shape: str) -> Path:
        """A checkpoint of random weights in bfloat16."""
        import torch
        import transformers

        from bench.training import llama_config

        path = self.folder / f"teacher_{shape}"
        if not path.exists():
            transformers.LlamaForCausalLM(llama_config(shape)).to(torch.bfloat16).save_pretrained(path)
        return path

    def write(
        self, name: str, strategy: str, processes: int, *, shard: bool, batch: int, steps: int, shape: str, **more: Any
    ) -> Path:
        """A manifest of one run."""
        train: dict[str, Any] = {
            "strategy": {"type": strategy, **ROWS},
            "device": self.options.device,
            "dtype": "bfloat16",
            "batch_size": batch,
            "context": self.context,
            "lr": 1e-4,
            "schedule": {"type": "constant"},
            "checkpoint_minutes": None,
            "parallel": {"data": processes, "shard": shard and processes > 1},
            **more,
        }
        group: dict[str, Any] = {"name": "group", "data": {"train": f"{shape}.npy"}}
        document = manifest(shape, {"type": "gqa"})
        if strategy == "upcycle.global":
            document = manifest(shape, {"type": "dba", **CACHED[shape], "o_bias": True})
            group["teacher"] = {"source": str(self.teacher(shape)), "dtype": "bfloat16"}
            train["trains"] = ["attention", "norm", "mlp"]
        group["runs"] = [{"id": "run", "mode": "train", "seed": 1, "steps": steps, "train": train}]
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps({**document, "name": name, "groups": [group]}))
        return path

    def start(self, path: Path, processes: int, *arguments: str, leaves: bool = False) -> subprocess.Popen[str]:
        """``caramba run``, in so many processes."""
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(torchrun if processes > 1 else []), str(Path(__file__).resolve()), "--worker"]
        command += [*(["--leaves"] if leaves else []), str(path), "--output", str(self.folder / "runs"), *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "4")}
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def run(self, path: Path, processes: int, *arguments: str, leaves: bool = False) -> list[dict[str, Any]]:
        """The lines of metrics of a run that comes to its end."""
        process = self.start(path, processes, *arguments, leaves=leaves)
        _, error = process.communicate()
        if process.returncode != 0:
            raise RuntimeError(f"{path.stem} ended with {process.returncode}: {error[-3000:]}")
        return self.metrics(path)

    def metrics(self, path: Path) -> list[dict[str, Any]]:
        """The lines of metrics of a run so far."""
        file = self.folder / "runs" / path.stem / "group" / "run" / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def attempt(self, part: str, work: Any) -> None:
        """A part that may fail; the others count, too."""
        began = time.perf_counter()
        try:
            work()
        except Exception as error:  # noqa: BLE001
            say(part=part, failed=f"{type(error).__name__}: {error}"[:3500])
        say(part=part, part_seconds=round(time.perf_counter() - began, 1))


def speed(bench: Bench, strategy: str) -> None:
    """Tokens/s of one process, and of several in each kind."""
    options, alone = bench.options, 0.0
    for kind, shard in {"one": False, **KINDS}.items():
        if kind not in options.kinds.split(","):
            continue
        processes = 1 if kind == "one" else options.processes
        batch = bench.batch * processes
        name = f"speed_{strategy.replace('.', '_')}_{kind}"
        settings: dict[str, Any] = {"batch": batch, "steps": options.steps, "shape": options.shape}
        path = bench.write(name, strategy, processes, shard=shard, **settings)
        began = time.perf_counter()
        lines = bench.run(path, processes, leaves=True)
        taken = [b["seconds"] - a["seconds"] for a, b in pairwise(lines)]
        median = statistics.median(taken[len(taken) // 2 :])
        rate = batch * bench.context / median
        alone = alone or rate
        say(
            part="speed",
            strategy=strategy,
            kind=kind,
            processes=processes,
            tokens_a_step=batch * bench.context,
            seconds_a_step=round(median, 4),
            tokens_per_second=round(rate),
            share_of_single=round(rate / (processes * alone), 4),
            peak_gib=peaks(path),
            start_to_end=round(time.perf_counter() - began, 1),
        )


def losses(bench: Bench) -> None:
    """Losses of the same steps by one process and by several.

    ``accumulated`` is one process that takes the passes of the several one after the other: what is left between it
    and them comes of sums in another order alone.
    """
    options, found = bench.options, dict[str, list[float]]()
    several = options.processes
    for kind, shard in {"one": False, "accumulated": False, **KINDS}.items():
        processes = several if kind in KINDS else 1
        batch, more = max(bench.batch, several), dict[str, Any]()
        if kind == "accumulated":
            batch, more = batch // several, {"accumulate": several}
        settings: dict[str, Any] = {"batch": batch, "steps": options.compared, "shape": options.shape, **more}
        path = bench.write(f"losses_{kind}", "pretrain", processes, shard=shard, **settings)
        found[kind] = [line["loss"] for line in bench.run(path, processes, leaves=True)]
        apart = {
            other: [abs(a - b) for a, b in zip(found[other], found[kind], strict=True)]
            for other in found
            if other in ("one", "accumulated") and other != kind
        }
        say(
            part="losses",
            kind=kind,
            processes=processes,
            losses=found[kind],
            largest_difference={other: max(values) for other, values in apart.items()},
            mean_of_last_ten={other: statistics.fmean(values[-10:]) for other, values in apart.items()},
        )


def resume(bench: Bench) -> None:
    """Half of a run by several processes and half by one, and the reverse, beside one by one."""
    options, half = bench.options, 6
    found: dict[str, list[float]] = {}
    for name, counts in (
        ("one", (1, 1)),
        ("several_to_one", (options.processes, 1)),
        ("one_to_several", (1, options.processes)),
    ):
        for part, processes in enumerate(counts, 1):
            settings: dict[str, Any] = {"batch": 2 * options.processes, "steps": part * half, "shape": options.small}
            path = bench.write(f"resume_{name}", "pretrain", processes, shard=True, **settings)
            found[name] = [line["loss"] for line in bench.run(path, processes, *(["--resume"] if part > 1 else []))]
        apart = [abs(a - b) for a, b in zip(found["one"], found[name], strict=True)]
        say(part="resume", case=name, processes=counts, losses=found[name], largest_difference=max(apart))


def kill(bench: Bench) -> None:
    """One process of several gets SIGKILL in the middle of a run, which is resumed."""
    options = bench.options
    settings: dict[str, Any] = {"batch": 2 * options.processes, "steps": 24, "shape": options.small}
    for kind, shard in KINDS.items():
        path = bench.write(f"whole_{kind}", "pretrain", options.processes, shard=shard, checkpoint_every=4, **settings)
        whole = [line["loss"] for line in bench.run(path, options.processes)]
        for rank in (options.processes - 1, 0):
            name = f"killed_{kind}_{rank}"
            path = bench.write(name, "pretrain", options.processes, shard=shard, checkpoint_every=4, **settings)
            process = bench.start(path, options.processes)
            while len(bench.metrics(path)) < 10 and process.poll() is None:
                time.sleep(0.02)
            number = children(process.pid)[rank]
            began = time.perf_counter()
            os.kill(number, signal.SIGKILL)
            _, error = process.communicate()
            seconds = time.perf_counter() - began
            end = [line["loss"] for line in bench.run(path, options.processes, "--resume")]
            apart = [abs(a - b) for a, b in zip(whole, end, strict=True)]
            said = [line for line in error.splitlines() if line.startswith("error:")]
            say(
                part="kill",
                kind=kind,
                rank=rank,
                seconds_until_all_ended=round(seconds, 2),
                said=said,
                steps_after_resuming=len(end),
                largest_difference=max(apart),
            )


def children(parent: int) -> list[int]:
    """The processes that one has started, oldest first."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=True)
    return sorted(map(int, found.stdout.split()))


def peaks(path: Path) -> list[float]:
    """Peak memory that tensors took on each process's device, in GiB."""
    return [json.loads(file.read_text()) for file in sorted(path.parent.glob(f"{path.stem}.peak_*"))]


def worker(arguments: list[str]) -> None:
    """``caramba run``; with ``--leaves`` until it would save."""
    import torch
    from caramba_plugins_standard.training.loop import TrainRunner
    from caramba_terminal.limit import Paused

    from caramba_core.cli import main

    def leave(self: TrainRunner, **_: bool) -> None:
        peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        file = Path(f"{Path(arguments[0]).stem}.peak_{os.environ.get('RANK', '0')}")
        file.write_text(json.dumps(round(peak, 2)))
        raise Paused("left")

    if arguments[0] == "--leaves":
        arguments = arguments[1:]
        TrainRunner._save = leave  # type: ignore[method-assign]
    main(["run", *arguments])


def measure() -> None:
    """All parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="speed,losses,resume,kill")
    parser.add_argument("--strategies", default="pretrain,upcycle.global", help="whose speed is taken")
    parser.add_argument("--kinds", default="one,ddp,fsdp", help="whose speed is taken; shares are of the first one's")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--shape", default="1b", choices=SHAPES)
    parser.add_argument("--small", default="135m", choices=SHAPES, help="shape of what writes checkpoints")
    parser.add_argument("--batch", type=int, default=16, help="sequences of 2,048 tokens a process")
    parser.add_argument("--steps", type=int, default=16, help="of a run whose speed is taken")
    parser.add_argument("--compared", type=int, default=50, help="steps whose losses are compared")
    options = parser.parse_args()
    import torch

    name = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor()
    say(name=name, devices=torch.cuda.device_count(), torch=torch.__version__, options=vars(options))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        parts = options.parts.split(",")
        if "speed" in parts:
            for strategy in options.strategies.split(","):
                bench.attempt("speed", lambda strategy=strategy: speed(bench, strategy))  # type: ignore[misc]
        for part, work in (("losses", losses), ("resume", resume), ("kill", kill)):
            if part in parts:
                bench.attempt(part, lambda work=work: work(bench))  # type: ignore[misc]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2:])
    else:
        measure()
