"""Runs whose result is a mean of their weights: what it is, how they go on, what follows, and what plans say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from caramba_core.manifest.load import load_manifest
from caramba_core.run.experiment import Experiment

from .workspace import folder_of, make_workspace, run

DECAY = 0.6
EVAL = "      - {id: measure, mode: eval, from: finetune}\n"


def workspace(folder: Path, settings: str, more: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    manifest = make_workspace(folder)
    text = manifest.read_text().replace("device: cpu,", f"device: cpu, {settings},").replace("windows: 4", "windows: 1")
    manifest.write_text(text + more)
    return manifest


def saved(manifest: Path, step: int, file: str = "model") -> dict[str, Tensor]:
    return load_file(folder_of(manifest) / "checkpoints" / f"step_{step:06d}" / f"{file}.safetensors")


def test_the_result_is_the_mean_and_training_is_as_it_was(tmp_path: Path) -> None:
    every = "keep: {last: 9}, evaluate_every: 3, checkpoint_every: 1"
    plain, mean = workspace(tmp_path / "plain", every), workspace(tmp_path / "mean", f"{every}, ema: {DECAY}", EVAL)
    for manifest in (plain, mean):
        manifest.write_text(manifest.read_text().replace("checkpoint_every: 2", "compile: false"))
        assert run(manifest) == 0
    weights = [saved(plain, step) for step in range(1, 7)]
    trained = [saved(mean, step, "trained") for step in range(1, 7)]
    assert trained[0]
    for behind, names in zip(weights, trained, strict=True):
        assert all(torch.equal(behind[name], tensor) for name, tensor in names.items())
    for steps in (1, 2, 6):
        shares = torch.tensor([DECAY ** (steps - 1 - step) for step in range(steps)], dtype=torch.float64)
        result = saved(mean, steps)
        for name in trained[0]:
            expected = sum(
                share * one[name].double() for share, one in zip(shares / shares.sum(), weights, strict=False)
            )
            torch.testing.assert_close(result[name].double(), expected, rtol=1e-5, atol=1e-7)
        assert all(torch.equal(tensor, weights[0][name]) for name, tensor in result.items() if name not in trained[0])
    own, other = (
        json.loads((folder_of(mean, name) / "summary.json").read_text())["perplexity"]["end"]
        for name in ("finetune", "measure")
    )
    assert own == other  # of the mean, as it was saved
    lines = [json.loads(line) for line in (folder_of(mean) / "metrics.jsonl").read_text().splitlines()]
    assert own in [line["perplexity"] for line in lines if line["step"] == 6 and "perplexity" in line]


@pytest.mark.parametrize("settings", ["on_nonfinite: skip 3", "lora: {rank: 2, targets: [mlp]}"])
def test_such_a_run_goes_on_bit_for_bit(tmp_path: Path, settings: str) -> None:
    settings = f"{settings}, ema: {DECAY}, evaluate_every: 2, keep: {{best: perplexity}}"
    whole, parts = workspace(tmp_path / "whole", settings), workspace(tmp_path / "parts", settings)
    assert run(whole) == 0
    assert run(parts, "--run", "convert") == 0
    while not (folder_of(parts) / "checkpoints" / "step_000003").exists():  # each call ends behind one piece of work
        assert run(parts, "--run", "finetune", "--resume", "--minutes", "1e-9") == 0
    assert run(parts, "--resume") == 0
    for file in ("model", "trained", "optimizer"):
        expected = saved(whole, 6, file)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in saved(parts, 6, file).items()), file
    one, other = (json.loads((folder_of(each) / "summary.json").read_text()) for each in (whole, parts))
    assert one["perplexity"] == other["perplexity"]


def test_the_mean_counts_as_memory_of_the_optimizer(tmp_path: Path) -> None:
    runs = []
    for name, settings in (("plain", "clip: 1.0"), ("mean", "ema: 0.9")):
        experiment = Experiment(load_manifest(str(workspace(tmp_path / name, settings))), output=tmp_path / "runs")
        runs += [plan for plan in experiment.plans["half"].runs if plan.id == "finetune"]
    plain, mean = runs
    assert mean.memory.optimizer - plain.memory.optimizer == 4 * mean.trained_parameters > 0
