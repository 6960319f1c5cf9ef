"""``train.compile: auto``, which compiles on CUDA: here a CPU is taken for one."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from caramba_plugins_standard import layer_modules
from caramba_plugins_standard.modes import Train
from safetensors.torch import load_file

from caramba_core.cli import main

from .workspace import make_workspace

GROUPS = """\
groups:
  - name: group
    data: {train: train.npy}
    runs:
      - id: run
        mode: train
        seed: 3
        steps: 3
        train: {strategy: pretrain, device: cpu, batch_size: 2, context: 32, lr: 1.0e-3, compile: COMPILE}
"""


def trained(folder: Path, compile_: str) -> dict[str, torch.Tensor]:
    """Weights behind three steps of the small run, with a dropout that draws."""
    folder.mkdir()
    manifest = make_workspace(folder)
    model = manifest.read_text().partition("groups:")[0]
    model = model.replace("{type: swiglu, d_ff: 48}]", "{type: swiglu, d_ff: 48}, {type: dropout}]")
    manifest.write_text(model + GROUPS.replace("COMPILE", compile_))
    runs = ["--output", str(folder / "runs")]
    with pytest.raises(SystemExit) as ended:
        main(["run", str(manifest), *runs])
    assert ended.value.code in (0, None)
    return load_file(folder / "runs/small/group/run/checkpoints/step_000003/model.safetensors")


def test_what_cannot_be_compiled_runs_as_it_is_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = trained(tmp_path / "plain", "false")
    gated = layer_modules.gated

    def unknown_to_the_compiler(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return gated(gate, up)

    monkeypatch.setattr(layer_modules, "gated", unknown_to_the_compiler)
    monkeypatch.setattr(Train, "compiles", property(lambda run: run.train.compile != False))  # noqa: E712
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    found = trained(tmp_path / "auto", "auto")
    told = capsys.readouterr()
    said = " ".join((told.out + told.err).split())
    assert "on cpu, compiled" in said
    assert said.count("not compiled: ") == 1
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, msg=name)
