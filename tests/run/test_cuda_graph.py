"""A step recorded as a CUDA graph: the same numbers; refused where there is no CUDA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from caramba_plugins_standard.parallel import Parallel
from caramba_plugins_standard.pretrain import Pretrain
from caramba_plugins_standard.training import StepResult, Training
from caramba_plugins_standard.training.cuda_graph import CapturedStep, why_not_recorded
from caramba_plugins_upcycle.strategies import Global, KeptLogits

from caramba_core.cli import main

from .workspace import make_workspace


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_without_cuda_it_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = make_workspace(tmp_path)
    manifest.write_text(manifest.read_text().replace("checkpoint_every: 2}", "checkpoint_every: 2, cuda_graph: true}"))
    with pytest.raises(SystemExit) as ended:
        main(["run", str(manifest), "--output", str(tmp_path / "runs")])
    assert ended.value.code == 2
    assert "cuda_graph needs a CUDA device" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def test_what_keeps_a_step_from_being_recorded_has_words() -> None:
    assert why_not_recorded(Training(strategy=Pretrain(), lr=1e-3)) is None
    recomputes = Training(strategy=Pretrain(), lr=1e-3, activation_checkpointing="full")
    assert "activation_checkpointing" in str(why_not_recorded(recomputes))
    several = Training(strategy=Pretrain(), lr=1e-3, batch_size=2, parallel=Parallel(data=2))
    assert "several processes" in str(why_not_recorded(several))
    reads = Training(strategy=Global(keep_logits=KeptLogits()), lr=1e-3)
    assert "file" in str(why_not_recorded(reads))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_steps_over_documents_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where launching dominates, as it does for small models; the losses are those of steps that are not recorded."""
    manifest, losses = make_workspace(tmp_path), []
    (tmp_path / "train.npy.json").write_text(json.dumps({"end_of_text": 0}))
    documents = "train: {type: tokens, path: train.npy, documents: true}"
    text = manifest.read_text().replace("train: train.npy", documents).replace("device: cpu, ", "")
    assert documents in text
    for graph in ("false", "auto"):
        manifest.write_text(text.replace("checkpoint_every: 2}", f"checkpoint_every: 2, cuda_graph: {graph}}}"))
        with pytest.raises(SystemExit) as ended:
            main(["run", str(manifest), "--output", str(tmp_path / graph)])
        assert not ended.value.code
        lines = sorted((tmp_path / graph).rglob("metrics.jsonl"))[-1].read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert "replayed as a CUDA graph" in capsys.readouterr().out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_replayed_gradients_are_those_of_the_step() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Embedding(11, 5, device="cuda")
    parameters = list(layer.parameters())

    def step(tokens: torch.Tensor) -> StepResult:
        loss = layer(tokens).square().sum(-1).mean()
        loss.backward()
        return StepResult(loss=loss.detach(), metrics={})

    batches = [torch.randint(0, 11, (2, 3), device="cuda") for _ in range(3)]
    captured = CapturedStep(step, batches[0], parameters)
    replayed = parameters[0].grad
    for tokens in batches:
        loss, gradient = captured(tokens).loss.clone(), replayed.clone()
        parameters[0].grad = None
        torch.testing.assert_close(loss, step(tokens).loss)
        torch.testing.assert_close(gradient, parameters[0].grad)
