"""Steps that save a checkpoint within the step, and in the background, as JSON lines.

    python bench/checkpoints.py [--shape 135m] [--device cpu] [--steps 50] [--every 16]

A model of random weights is trained with AdamW twice, with ``checkpoint_async: false`` and ``true``.  For both: the
seconds that training waits for each checkpoint on the way, the median seconds of steps, the bytes of a checkpoint, and
the seconds of the whole run.  The last line says whether every checkpoint and loss has the same bits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from caramba_plugins_standard.training.loop import TrainRunner  # noqa: E402

from bench.training import SHAPES, manifest  # noqa: E402 - this file runs as a script, too
from caramba_core.manifest.load import load_manifest  # noqa: E402
from caramba_core.run.experiment import Experiment  # noqa: E402

CONTEXT: Final = 64


def say(**record: Any) -> None:
    """One JSON line."""
    print(json.dumps(record), flush=True)


def train(folder: Path, options: argparse.Namespace, *, background: bool) -> dict[str, Any]:
    """Train once; what is left, by its bits."""
    name = "background" if background else "within"
    settings: dict[str, Any] = {
        "strategy": {"type": "pretrain"},
        "device": options.device,
        "batch_size": 1,
        "context": CONTEXT,
        "lr": 1e-4,
        "checkpoint_every": options.every,
        "checkpoint_async": background,
        "keep": {"last": 1 + options.steps // options.every},
    }
    run = {"id": "run", "mode": "train", "seed": 1, "steps": options.steps, "train": settings}
    group = {"name": "group", "data": {"train": "ids.npy"}, "runs": [run]}
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**manifest(options.shape, {"type": "gqa"}), "name": name, "groups": [group]}))
    waited: list[float] = []
    save = TrainRunner._save

    def timed(self: TrainRunner, *, in_background: bool) -> None:
        began = time.perf_counter()
        save(self, in_background=in_background)
        if options.device == "cuda":
            torch.cuda.synchronize()
        waited.append(round(time.perf_counter() - began, 3))

    TrainRunner._save = timed  # type: ignore[method-assign]
    began = time.perf_counter()
    Experiment(load_manifest(str(path)), output=folder / "runs").complete()
    seconds = time.perf_counter() - began
    TrainRunner._save = save  # type: ignore[method-assign]
    place = folder / "runs" / name / "group" / "run"
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    checkpoints = sorted((place / "checkpoints").iterdir())
    say(
        checkpoints=name,
        seconds_waited=waited[:-1],
        seconds_waited_for_the_last=waited[-1],
        seconds_of_a_step=round(statistics.median(b["seconds"] - a["seconds"] for a, b in pairwise(lines)), 3),
        checkpoint_bytes=sum(file.stat().st_size for file in checkpoints[-1].iterdir()),
        seconds_from_start_to_end=round(seconds, 1),
    )
    files = {
        f"{each.name}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
        for each in checkpoints
        for file in each.glob("*.safetensors")
    }
    return {**files, "losses": [line["loss"] for line in lines]}


def main() -> None:
    """Both, beside each other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="135m", choices=SHAPES)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--every", type=int, default=16, help="steps between checkpoints")
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    say(device=name, torch=torch.__version__, options=vars(options))
    with tempfile.TemporaryDirectory() as folder:
        size = SHAPES[options.shape]["vocabulary"]
        ids = np.random.default_rng(0).integers(0, size, options.steps * CONTEXT + 1)
        np.save(Path(folder) / "ids.npy", ids.astype(np.uint32))
        within, background = (train(Path(folder), options, background=which) for which in (False, True))
    differs = sorted(name for name in {*within, *background} if within.get(name) != background.get(name))
    say(checkpoint_files=len(within) - 1, losses=len(within["losses"]), differs=differs)
    sys.exit(bool(differs))


if __name__ == "__main__":
    main()
