"""Checkpoints written while training goes on are those of their step; a write that fails is said."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from caramba_plugins_standard.training.background import BackgroundCheckpoints

from caramba_core.run.checkpoint import Files
from tests.plugins.test_hooks_in_runs import FOLDER, MANIFEST, caramba

from .models import tiny_model


def checkpoints(folder: Path, settings: str) -> dict[str, Any]:
    """Every checkpoint of a run, by the bits of its files, and the lines of its metrics."""
    folder.mkdir()
    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, 60, 700).astype(np.uint16))
    settings = f"evaluate_every: 2, checkpoint_every: 1, keep: {{last: 9}}, {settings}"
    (folder / "m.yml").write_text(MANIFEST.replace("evaluate_every: 3", settings))
    assert caramba("run", str(folder / "m.yml"), "--output", str(folder / "runs")) == 0
    run = folder / FOLDER
    found: dict[str, Any] = {
        f"{file.parent.name}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
        for file in run.glob("checkpoints/*/*.safetensors")
    }
    for file in run.glob("checkpoints/*/state.json"):
        state = json.loads(file.read_text())
        found[file.parent.name] = [state[key] for key in ("step", "samples", "tokens", "optimizer", "files")]
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    found["metrics"] = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
    found["summary"] = json.loads((run / "summary.json").read_text())["perplexity"]
    return found


@pytest.mark.parametrize("settings", ["optimizer: muon", "lora: {rank: 2, targets: [attention]}, trains: [norm]"])
def test_every_checkpoint_is_that_of_its_step(tmp_path: Path, settings: str) -> None:
    within = checkpoints(tmp_path / "within", f"{settings}, checkpoint_async: false")
    beside = checkpoints(tmp_path / "beside", f"{settings}, checkpoint_async: true")
    assert sum(name.endswith("model.safetensors") for name in within) == 6
    assert beside == within


class Writing:
    """A write that waits for a word, and notes what it was given."""

    def __init__(self, error: Exception | None = None) -> None:
        self.may_go_on = Event()
        self.error = error
        self.sums: dict[str, float] = {}

    def __call__(self, files: Files) -> None:
        assert self.may_go_on.wait(60)
        self.sums = {name: float(tensor.double().sum()) for held in files.values() for name, tensor in held.items()}
        if self.error is not None:
            raise self.error


def published(background: BackgroundCheckpoints, write: Writing, files: Files, saved: list[str]) -> None:
    background.publish(lambda: saved.append("saved"), files, write)


def ended(background: BackgroundCheckpoints, saved: list[str]) -> bool:
    """Whether one step's settling finished the checkpoint."""
    background.settle()
    return bool(saved)


def test_what_a_step_changes_is_copied() -> None:
    model, saved, write = tiny_model(seed=0), list[str](), Writing()
    frozen = next(name for name, _ in model.named_parameters())
    model.get_parameter(frozen).requires_grad_(False)
    files = {
        "model": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "optimizer": {"step": torch.tensor(3.0)},
    }
    before = {name: float(tensor.double().sum()) for held in files.values() for name, tensor in held.items()}
    with BackgroundCheckpoints(model, pytest.fail, copies=True) as background:
        published(background, write, files, saved)
        for held in files.values():
            for name, tensor in held.items():
                if name != f"model.{frozen}":
                    tensor.add_(1.0)
        assert not ended(background, saved)  # it is still being written
        write.may_go_on.set()
        while not ended(background, saved):
            pass
    assert write.sums == before
    assert saved == ["saved"]


@pytest.mark.parametrize("act", [BackgroundCheckpoints.finish, lambda background: None], ids=["waiting", "ending"])
def test_a_write_that_fails_is_an_error_of_the_run(act: Callable[[BackgroundCheckpoints], None]) -> None:
    saved, write = list[str](), Writing(OSError(28, "No space left on device"))
    write.may_go_on.set()
    with (
        pytest.raises(OSError, match="No space left"),
        BackgroundCheckpoints(tiny_model(seed=0), pytest.fail, copies=True) as background,
    ):
        published(background, write, {"model": {}}, saved)
        act(background)
    assert saved == []


def test_a_write_that_fails_beside_another_error_is_told() -> None:
    told, write = list[str](), Writing(OSError(28, "No space left on device"))
    write.may_go_on.set()
    with (
        pytest.raises(ZeroDivisionError),
        BackgroundCheckpoints(tiny_model(seed=0), told.append, copies=True) as background,
    ):
        published(background, write, {"model": {}}, [])
        raise ZeroDivisionError
    assert told == ["a checkpoint was not written: [Errno 28] No space left on device"]


def test_the_next_checkpoint_waits_for_the_one_before() -> None:
    saved, first, second = list[str](), Writing(), Writing()
    with BackgroundCheckpoints(tiny_model(seed=0), pytest.fail, copies=True) as background:
        published(background, first, {"model": {}}, saved)
        first.may_go_on.set()
        published(background, second, {"model": {}}, saved)
        assert saved == ["saved"]
        second.may_go_on.set()
    assert saved == ["saved", "saved"]
