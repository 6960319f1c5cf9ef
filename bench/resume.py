"""Whether a run that is stopped and killed goes on bit for bit: its end beside that of an undisturbed run (JSON lines).

    python bench/resume.py MANIFEST DATA --group G [--run distil] [--set path=value ...] [--output DIR]

Every piece is a process of its own.  One output folder sees the run twice in one piece (how far two runs of one seed
differ on this device at all), one sees it stopped by its time limit behind its first step, killed without warning
halfway, and taken up again each time.  The runs before RUN are done once and shared.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from recipe import naming_data, say
from safetensors.torch import load_file

from caramba_core.manifest.load import load_manifest
from caramba_core.run.experiment import Experiment


class Job:
    """One run of a manifest, done by processes of their own."""

    def __init__(self, manifest: str, overrides: list[str], group: str, run: str) -> None:
        self.command = [sys.executable, "-m", "caramba_core", "run", manifest, "--group", group]
        self.command += [part for override in overrides for part in ("--set", override)]
        experiment = Experiment(load_manifest(manifest, overrides=overrides, fetch=True), group=group)
        runs = [known.id for known in experiment.groups[0].runs]
        self.before = runs[: runs.index(run)]
        chosen: Any = experiment.groups[0].runs[runs.index(run)]
        self.steps: int = chosen.steps
        self.run = run
        self.place = Path(experiment.loaded.manifest.name) / group / run

    def go(self, output: Path, *more: str) -> None:
        """To the end, or to the time limit."""
        subprocess.run([*self.command, "--output", str(output), *more], check=True, stdout=sys.stderr)

    def kill_behind(self, output: Path, step: int) -> None:
        """Go on, and die without warning once ``step`` steps are recorded."""
        process = subprocess.Popen(
            [*self.command, "--output", str(output), "--run", self.run, "--resume"], stdout=sys.stderr
        )
        while process.poll() is None and len(self.metrics(output)) < step:
            time.sleep(0.05)
        if process.poll() is not None:
            raise SystemExit(f"resume: the run ended by itself with code {process.returncode} before step {step}")
        process.send_signal(signal.SIGKILL)
        process.wait()

    def metrics(self, output: Path) -> list[dict[str, Any]]:
        """The recorded steps; a line that is being written does not count."""
        file = output / self.place / "metrics.jsonl"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        return [json.loads(line) for line in lines]

    def end(self, output: Path) -> dict[str, torch.Tensor]:
        """Parameters and optimizer state at the last step."""
        newest = max((output / self.place / "checkpoints").iterdir())
        return {
            f"{file}/{name}": tensor
            for file in ("model", "optimizer")
            for name, tensor in load_file(newest / f"{file}.safetensors").items()
        }


def compare(job: Job, whole: Path, other: Path) -> dict[str, Any]:
    """Differences of the ends and of the losses on the way."""
    ours, theirs = job.end(whole), job.end(other)
    assert ours.keys() == theirs.keys()
    differing = [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
    largest = max((float((ours[n].double() - theirs[n].double()).abs().max()) for n in differing), default=0.0)
    losses = [[line["loss"] for line in job.metrics(output)] for output in (whole, other)]
    assert len(losses[0]) == len(losses[1]) == job.steps
    equal = next((step for step, pair in enumerate(zip(*losses, strict=True)) if pair[0] != pair[1]), job.steps)
    return {
        "tensors": len(ours),
        "differing": len(differing),
        "largest_difference": largest,
        "steps": job.steps,
        "steps_of_equal_loss": equal,
    }


def main() -> None:
    """Run, kill, go on, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest")
    parser.add_argument("data", type=Path)
    parser.add_argument("--group", required=True)
    parser.add_argument("--run", default="distil")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--output", type=Path, default=Path("runs/resume"))
    arguments = parser.parse_args()
    manifest = str(Path(arguments.manifest).resolve())
    overrides = naming_data(manifest, arguments.data.resolve(), arguments.overrides)
    job = Job(manifest, overrides, arguments.group, arguments.run)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    say(event="start", device=device, torch=torch.__version__, overrides=arguments.overrides)
    whole, again, pieces = (arguments.output.resolve() / name for name in ("whole", "again", "pieces"))
    for earlier in job.before:
        job.go(whole, "--run", earlier)
    for copy in (again, pieces):
        shutil.copytree(whole, copy)
    for output in (whole, again):
        began = time.monotonic()
        job.go(output, "--run", job.run)
        say(event="whole", seconds=round(time.monotonic() - began, 1))
    while not job.metrics(pieces):  # windows of teacher and start are measured first, a batch a call
        job.go(pieces, "--run", job.run, "--minutes", "0")
    say(event="stopped", step=len(job.metrics(pieces)))
    job.kill_behind(pieces, max(2, job.steps // 2))
    say(event="killed", step=len(job.metrics(pieces)))
    job.go(pieces, "--run", job.run, "--resume")
    say(event="again", **compare(job, whole, again))
    say(event="resumed", **compare(job, whole, pieces))


if __name__ == "__main__":
    main()
