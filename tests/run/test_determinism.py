"""``train.deterministic``: the same bits on CUDA too; what cannot give them is refused, and torch is left as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from caramba_plugins_standard.training.determinism import deterministic
from safetensors.torch import load_file

from caramba_core.cli import main
from caramba_core.errors import InputError

from .workspace import make_workspace

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]


def test_what_has_no_deterministic_algorithm_is_named() -> None:
    missing = r"run fast: .*put_ does not have a deterministic implementation"
    with pytest.raises(InputError, match=missing), deterministic("fast"):
        torch.zeros(3).put_(torch.tensor([1]), torch.ones(1))
    assert not torch.are_deterministic_algorithms_enabled()
    torch.zeros(3).put_(torch.tensor([1]), torch.ones(1))


def test_other_faults_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="something else"), deterministic("fast"):
        assert torch.are_deterministic_algorithms_enabled()
        raise RuntimeError("something else")
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_trains_with_deterministic_algorithms_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen: list[bool] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    manifest = make_workspace(tmp_path)
    with_option(manifest, "deterministic: true")
    assert run(manifest, tmp_path / "runs") == 0
    assert seen == [True] * 6
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, device: str, optimizer: str) -> None:
    manifest = make_workspace(tmp_path)
    with_option(manifest, f"deterministic: true, optimizer: {optimizer}")
    manifest.write_text(manifest.read_text().replace("device: cpu", f"device: {device}"))
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    assert run(manifest, whole) == 0
    assert run(manifest, pieces, "--run", "convert") == 0
    for _ in range(3):  # teacher and start were measured with the conversion: each call takes a step
        assert run(manifest, pieces, "--resume", "--minutes", "0") == 0
    assert newest(pieces).name == "step_000003"
    assert not (pieces / "small" / "half" / "finetune" / "summary.json").exists()
    assert run(manifest, pieces, "--resume") == 0
    for file in ("model.safetensors", "optimizer.safetensors"):
        expected, found = (load_file(newest(output) / file) for output in (whole, pieces))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)


def with_option(manifest: Path, option: str) -> None:
    manifest.write_text(manifest.read_text().replace("checkpoint_every: 2}", f"checkpoint_every: 2, {option}}}"))


def run(manifest: Path, output: Path, *more: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["run", str(manifest), "--output", str(output), *more])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def newest(output: Path) -> Path:
    return max((output / "small" / "half" / "finetune" / "checkpoints").glob("*"))
