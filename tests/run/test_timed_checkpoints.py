"""Checkpoints by time, where a manifest does not say after how many steps; the clock is the test's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from caramba_terminal.reporter import Reporter
from safetensors.torch import load_file

from caramba_core.manifest.load import load_manifest
from caramba_core.run import context
from caramba_core.run.experiment import Experiment

from .workspace import make_workspace


class Killed(BaseException):
    """What ends a process without a word."""


class Clock:
    """Four minutes pass with each step of the optimizer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps, self.last = 0, None
        step, self.saved = torch.optim.AdamW.step, list[int]()
        save = context.save_checkpoint

        def counted(optimizer: torch.optim.AdamW) -> None:
            if self.steps == self.last:
                raise Killed
            self.steps += 1
            step(optimizer)

        def noted(path: Path, **what: Any) -> None:
            self.saved.append(int(path.name.removeprefix("step_")))
            save(path, **what)

        monkeypatch.setattr(torch.optim.AdamW, "step", counted)
        monkeypatch.setattr(context, "save_checkpoint", noted)

    def __call__(self) -> float:
        return 240.0 * self.steps


def run(folder: Path, clock: Clock, setting: str, **options: Any) -> dict[str, torch.Tensor]:
    if not (folder / "manifest.yml").exists():
        manifest = make_workspace(folder)
        manifest.write_text(
            manifest.read_text().replace("checkpoint_every: 2", setting).replace("steps: 6", "steps: 8")
        )
    loaded = load_manifest(str(folder / "manifest.yml"))
    Experiment(loaded, output=folder / "runs", reporter=Reporter(clock=clock)).complete(**options)
    newest = max((folder / "runs" / "small" / "half" / "finetune" / "checkpoints").iterdir())
    return load_file(newest / "model.safetensors")


@pytest.mark.parametrize(
    ("setting", "saved"),
    [
        ("compile: false", [3, 6, 8]),  # the default: ten minutes
        ("checkpoint_minutes: 4", [1, 2, 3, 4, 5, 6, 7, 8]),
        ("checkpoint_minutes: 16", [4, 8]),
        ("checkpoint_minutes: null", [8]),
        ("checkpoint_every: 5", [5, 8]),
        ("checkpoint_every: 5, checkpoint_minutes: 1", [5, 8]),
    ],
)
def test_when(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, saved: list[int]) -> None:
    clock = Clock(monkeypatch)
    run(tmp_path, clock, setting)
    assert clock.saved == [0, *saved]  # step 0 is the conversion's


def test_a_killed_run_goes_on_from_it_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("whole", "pieces"):
        (tmp_path / name).mkdir()
    clock = Clock(monkeypatch)
    whole = run(tmp_path / "whole", clock, "checkpoint_minutes: null")
    clock.steps, clock.last = 0, 5
    with pytest.raises(Killed):
        run(tmp_path / "pieces", clock, "compile: false")
    clock.last = None
    pieces = run(tmp_path / "pieces", clock, "compile: false", resume=True)
    assert clock.saved[2:] == [0, 3, 6, 8]
    assert all(torch.equal(whole[name], tensor) for name, tensor in pieces.items())


def test_the_setting_may_change_when_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    clock.last = 5
    with pytest.raises(Killed):
        run(tmp_path, clock, "checkpoint_minutes: 4")
    clock.last, manifest = None, tmp_path / "manifest.yml"
    manifest.write_text(manifest.read_text().replace("checkpoint_minutes: 4", "checkpoint_minutes: null"))
    run(tmp_path, clock, "", resume=True)
    assert clock.saved == [0, 1, 2, 3, 4, 5, 8]
    summary = json.loads((tmp_path / "runs" / "small" / "half" / "finetune" / "summary.json").read_text())
    assert "changed_on_the_way" not in summary
