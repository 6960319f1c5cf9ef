"""A step recorded as a CUDA graph: the same numbers; refused where there is no CUDA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from caramba_plugins_standard.training import StepResult
from caramba_plugins_standard.training.cuda_graph import CapturedStep

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
