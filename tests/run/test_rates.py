"""Learning rates by node: how far each moves, how a run goes on, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from caramba_plugins_standard.training.rates import node_factors, parameter_groups
from safetensors.torch import load_file
from torch import Tensor

import caramba
from caramba_core.errors import InvalidValue

from .workspace import make_workspace, run


def workspace(folder: Path, settings: str) -> Path:
    folder.mkdir(exist_ok=True)
    manifest = make_workspace(folder)
    text = manifest.read_text().replace("trains: [attention, norm]", "trains: [attention, norm, mlp]")
    manifest.write_text(text.replace("device: cpu,", f"device: cpu, {settings},").replace("windows: 4", "windows: 1"))
    return manifest


def saved(manifest: Path, step: int, name: str = "finetune", file: str = "model") -> dict[str, Tensor]:
    folder = manifest.parent / "runs" / "small" / "half" / name / "checkpoints" / f"step_{step:06d}"
    return load_file(folder / f"{file}.safetensors")


def test_a_node_moves_as_far_as_its_factor_says(tmp_path: Path) -> None:
    plain = "optimizer: {type: sgd, momentum: 0.0}, clip: null"
    factors = {"mlp": 0.25, "blocks.1.attention": 2.0}
    moved = {}
    for name, settings in (("plain", plain), ("factors", f"{plain}, lr_factors: {factors}".replace("'", ""))):
        manifest = workspace(tmp_path / name, settings)
        assert run(manifest, "--set", "vars.steps=1") == 0
        before, after = saved(manifest, 0, "convert"), saved(manifest, 1)
        moved[name] = {key: after[key].double() - before[key].double() for key in after}
    assert any(bool(step.any()) for step in moved["plain"].values())
    for name, step in moved["plain"].items():
        factor = 0.25 if ".mlp" in name else 2.0 if "blocks.1.attention" in name else 1.0
        torch.testing.assert_close(moved["factors"][name], factor * step, rtol=1e-3, atol=1e-7, msg=name)


@pytest.mark.parametrize("optimizer", ["adamw, weight_decay: 0.1", "muon"])
def test_such_a_run_goes_on_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    settings = f"optimizer: {{type: {optimizer}}}, lr_factors: {{mlp: 0.25, blocks.1.attention: 2.0}}"
    whole, parts = workspace(tmp_path / "whole", settings), workspace(tmp_path / "parts", settings)
    assert run(whole, "--set", "vars.steps=4") == 0
    assert run(parts, "--set", "vars.steps=4", "--run", "convert") == 0
    while not (parts.parent / "runs" / "small" / "half" / "finetune" / "checkpoints" / "step_000002").exists():
        assert run(parts, "--set", "vars.steps=4", "--run", "finetune", "--resume", "--minutes", "1e-9") == 0
    assert run(parts, "--set", "vars.steps=4", "--resume") == 0
    for file in ("model", "optimizer"):
        expected = saved(whole, 4, file=file)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in saved(parts, 4, file=file).items())


def test_adapters_move_at_the_rate_of_their_node(tmp_path: Path) -> None:
    model = caramba.load(make_workspace(tmp_path)).build(seed=0)
    weight = torch.nn.Parameter(torch.zeros(1))
    names = ["model.embedder.weight", "model.blocks.0.mlp.up_proj", "model.blocks.0.mlp.gate_proj.down"]
    factors = node_factors(model.graph, {"mlp": 0.5}, frozenset({"model.blocks.0.mlp"}))
    groups = parameter_groups(model.graph, [(name, weight) for name in names], factors)
    assert [(len(one["params"]), one["lr_factor"], one.get("tables", False)) for one in groups] == [
        (2, 0.5, False),
        (1, 1.0, True),
    ]


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        ("{mlpp: 0.5}", "'mlpp' matches no node of the model"),
        ("{embedder: 0.5}", "nothing that 'embedder' names trains"),
        ("{mlp: 0.5, blocks.0.*: 0.1}", "has the factor 0.5 of 'mlp', and 0.1 of 'blocks.0.*'"),
        ("{mlp: 0.0}", "expected: a rate above 0 and up to 1"),
        ("{mlp: 5000.0}", "5000 times lr is 5"),
    ],
)
def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], factors: str, said: str) -> None:
    manifest = workspace(tmp_path, f"lr_factors: {factors}")
    assert run(manifest) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert said in error
    assert "lr_factors" in error


def test_equal_factors_may_overlap(tmp_path: Path) -> None:
    graph = caramba.load(make_workspace(tmp_path)).build(seed=0).graph
    everything = frozenset(graph.nodes())
    assert node_factors(graph, {"mlp": 0.5, "blocks.0.mlp": 0.5}, everything)["model.blocks.0.mlp"] == 0.5
    with pytest.raises(InvalidValue, match=r"has the factor 0\.5"):
        node_factors(graph, {"mlp": 0.5, "blocks.0.mlp": 0.1}, everything)
