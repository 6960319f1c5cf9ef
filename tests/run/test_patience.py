"""Runs that end where measurements stop getting better: when, with which result, and how they go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from .workspace import folder_of, make_workspace, run

WORSENS = "evaluate_every: 1, checkpoint_every: 1, schedule: {type: linear, warmup: 6}, clip: null"
"""With a rate that is far too high in the end."""


def workspace(folder: Path, settings: str, more: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    manifest = make_workspace(folder)
    text = manifest.read_text().replace("checkpoint_every: 2", settings).replace("windows: 4", "windows: 1")
    manifest.write_text(text + more)
    return manifest


def summary(manifest: Path, name: str = "finetune") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder_of(manifest, name) / "summary.json").read_text())
    return found


def measured(manifest: Path) -> dict[int, float]:
    """Perplexity by step."""
    lines = [json.loads(line) for line in (folder_of(manifest) / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["perplexity"] for line in lines if "perplexity" in line}


def steps_saved(manifest: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (folder_of(manifest) / "checkpoints").iterdir())


FAST = ("--set", "vars.steps=12", "--set", "vars.lr=0.05")
SETTINGS = ["keep: {last: 9}", "ema: 0.5", "lora: {rank: 2, targets: [mlp]}"]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_run_ends_with_its_best_checkpoint_and_goes_on_bit_for_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: str
) -> None:
    settings = f"{WORSENS}, patience: 2, {settings}"
    whole = workspace(tmp_path / "whole", settings, "      - {id: measure, mode: eval, from: finetune}\n")
    parts = workspace(tmp_path / "parts", settings)
    assert run(whole, *FAST) == 0
    figures, result = measured(whole), summary(whole)
    best = min(figures, key=figures.__getitem__)
    assert best > 0
    assert max(figures) == result["steps"] == best + 2 < 12
    assert f"has not fallen below {figures[best]:.4f} of step {best} in 2 evaluations" in result["stop_reason"]
    assert result["result_step"] == best == steps_saved(whole)[-1]
    assert result["perplexity"]["end"] == pytest.approx(figures[best], rel=1e-6)  # adapters were not merged yet
    assert result["perplexity"]["end"] == summary(whole, "measure")["perplexity"]["end"]
    assert f"its best checkpoint, of step {best}" in " ".join(capsys.readouterr().out.split())

    assert run(parts, *FAST, "--run", "convert") == 0
    while not (folder_of(parts) / "summary.json").exists():  # each call ends behind one piece of work
        assert run(parts, *FAST, "--run", "finetune", "--resume", "--minutes", "1e-9") == 0
    assert measured(parts) == figures
    assert summary(parts)["result_step"] == best
    assert summary(parts)["perplexity"] == result["perplexity"]
    for file in ("model", "optimizer"):
        one, other = (
            load_file(folder_of(each) / "checkpoints" / f"step_{best:06d}" / f"{file}.safetensors")
            for each in (whole, parts)
        )
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_run_that_gets_better_ends_with_its_last_step(tmp_path: Path) -> None:
    """Which is measured, so that it can be the best."""
    manifest = workspace(tmp_path, "evaluate_every: 2, patience: 1")
    assert run(manifest, "--set", "vars.steps=5") == 0
    assert list(measured(manifest)) == [2, 4, 5]
    assert sorted(measured(manifest).values(), reverse=True) == list(measured(manifest).values())
    assert "result_step" not in summary(manifest)
    assert "stop_reason" not in summary(manifest)
    assert summary(manifest)["steps"] == steps_saved(manifest)[-1] == 5


def test_the_best_is_the_result_of_a_run_that_nothing_ended(tmp_path: Path) -> None:
    manifest = workspace(tmp_path, WORSENS.replace("linear", "constant") + ", patience: 99")
    assert run(manifest, "--set", "vars.steps=12", "--set", "vars.lr=0.9") == 0
    figures = measured(manifest)
    best = min(figures, key=figures.__getitem__)
    assert len(figures) == summary(manifest)["steps"] == 12
    assert summary(manifest)["result_step"] == steps_saved(manifest)[-1] == best
    assert summary(manifest)["perplexity"]["end"] == figures[best]


def test_nothing_is_best_where_nothing_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(workspace(tmp_path, "patience: 2")) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "train.patience: nothing is measured on the way" in said
    assert "evaluate_every: STEPS beside patience" in said
