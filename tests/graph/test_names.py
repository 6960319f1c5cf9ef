"""Names of nodes: stable, unique, and the same in the graph and in the built model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from caramba_core.graph import RESERVED, local_name, matches, name_fault
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel
from caramba_core.nn.module import TopologyModule
from caramba_core.nn.sequence import LayerSequence

from .models import GQA, MLP, NORM, faults_of, graph_of, linear, names_of, nested, residual, stacked

CASES: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "roles": ([NORM, GQA, MLP], ["norm", "attention", "mlp"]),
    "numbers": ([NORM, NORM, GQA, NORM], ["norm", "norm_2", "attention", "norm_3"]),
    "own names": ([{**NORM, "name": "first"}, NORM], ["first", "norm"]),
    "an own name takes a role's": ([NORM, {**GQA, "name": "norm"}, NORM], ["norm_2", "norm", "norm_3"]),
    "inline adds no name": ([residual(NORM, GQA), residual(NORM, MLP)], ["norm", "attention", "norm_2", "mlp"]),
    "inline in inline": ([residual(stacked(NORM, residual(MLP)))], ["norm", "mlp"]),
    "inline with a name": ([stacked(NORM, MLP, name="tail"), NORM], ["tail", "tail.norm", "tail.mlp", "norm"]),
    "a name far down counts": ([NORM, residual({**MLP, "name": "norm"})], ["norm_2", "norm"]),
    "nested": ([nested(2, NORM)], ["blocks", "blocks.0.norm", "blocks.1.norm"]),
    "nested twice": ([nested(1, NORM), nested(1, MLP)], ["blocks", "blocks.0.norm", "blocks_2", "blocks_2.0.mlp"]),
    "nested with a name": ([nested(1, NORM, name="layers")], ["layers", "layers.0.norm"]),
    "parallel": ([{"type": "parallel", "layers": [NORM, MLP]}], ["parallel", "parallel.0.norm", "parallel.1.mlp"]),
    "recurrent": ([{"type": "recurrent", "times": 2, "layers": [NORM]}], ["recurrent", "recurrent.body.norm"]),
    "cyclic": ([{"type": "cyclic", "times": 3, "layers": [NORM, MLP]}], ["cyclic", "cyclic.0.norm", "cyclic.1.mlp"]),
}


@pytest.mark.parametrize("case", CASES)
def test_names(case: str) -> None:
    layers, expected = CASES[case]
    assert names_of(graph_of(*layers)) == ["model.embedder", *(f"model.{name}" for name in expected), "model.head"]


@pytest.mark.parametrize("case", CASES)
def test_torch_has_the_same_names(case: str) -> None:
    graph = graph_of(*CASES[case][0])
    model = build(graph, device="meta")
    modules = {name for name, _ in model.named_modules()}
    for node in graph.walk():
        if not node.inline:
            assert local_name(node.name) in modules
    declared = {
        local_name(f"{node.name}.{weight}") for node in graph.walk() for weight in node.config.weights(node.width_in)
    }
    assert declared == set(model.state_dict())


def test_conversion_keeps_names() -> None:
    """An attention of another type stands under the same name."""
    dba = {**GQA, "type": "dba", "sem_dim": 4, "geo_dim": 4, "v_dim": 5, "rope": {"theta": 100.0}}
    assert names_of(graph_of(residual(NORM, GQA))) == names_of(graph_of(residual(NORM, dba)))


def test_reserved_names_are_those_that_modules_use() -> None:
    used = {
        name for cls in (LanguageModel, TopologyModule, LayerSequence) for name in dir(cls) if not name.startswith("_")
    }
    model = build(graph_of(nested(1, NORM), stacked(NORM, name="tail")), device="meta")
    holders = [module for module in model.modules() if isinstance(module, LayerSequence | TopologyModule)]
    own = {name for module in holders for name in vars(module) if not name.startswith("_")}
    assert used | own | {"embedder", "head"} <= RESERVED


@pytest.mark.parametrize("name", ["forward", "training", "head", "1st", "a.b", "a-b", "", "_x", "é"])
def test_names_that_cannot_be(name: str) -> None:
    assert name_fault(name) is not None
    (fault,) = faults_of({**NORM, "name": name})
    assert fault.path == ("model", "topology", "layers", 0, "name")
    assert repr(name) in fault.message


def test_two_of_one_name() -> None:
    (fault,) = faults_of({**NORM, "name": "twin"}, residual({**MLP, "name": "twin"}))
    assert fault.path == ("model", "topology", "layers", 1, "layers", 0, "name")
    assert "another node of the same scope is called 'twin'" in fault.message


def test_the_same_name_in_two_scopes_is_fine() -> None:
    names = names_of(graph_of(nested(2, {**NORM, "name": "twin"}), {**NORM, "name": "twin"}))
    assert names[1:-1] == ["model.blocks", "model.blocks.0.twin", "model.blocks.1.twin", "model.twin"]


def test_the_ends_have_fixed_names() -> None:
    embedder = {"type": "token", "vocab_size": 40, "d_model": 24, "name": "tokens"}
    faults = faults_of(NORM, embedder=embedder, head={"type": "linear", "name": "logits"})
    assert [fault.path for fault in faults] == [("model", "embedder", "name"), ("model", "head", "name")]


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("model.blocks.3.attention", "attention", True),
        ("model.blocks.3.attention", "model.blocks.3.attention", True),
        ("model.blocks.3.attention", "blocks.[0-7].attention", True),
        ("model.blocks.9.attention", "blocks.[0-7].attention", False),
        ("model.blocks.3.norm_2", "norm", True),
        ("model.blocks.3.norm_2", "norm_2", True),
        ("model.blocks.3.norm", "norm_2", False),
        ("model.blocks.3.mlp", "blocks.*", True),
        ("model.norm", "blocks.*", False),
        ("model.blocks.3.mlp", "*", True),
    ],
)
def test_patterns(name: str, pattern: str, expected: bool) -> None:
    assert matches(name, pattern) is expected


def test_applications_multiply() -> None:
    inner = {"type": "recurrent", "times": 3, "layers": [residual(NORM, GQA)]}
    graph = graph_of({"type": "recurrent", "times": 2, "layers": [inner, MLP]})
    found = {name: node.applications for name, node in graph.nodes().items()}
    assert found["model.recurrent.body.recurrent.body.attention"] == 6
    assert found["model.recurrent.body.mlp"] == 2
    cyclic = graph_of({"type": "cyclic", "times": 5, "layers": [NORM, linear(24)]}).nodes()
    assert (cyclic["model.cyclic.0.norm"].applications, cyclic["model.cyclic.1.linear"].applications) == (3, 2)


def test_a_model_of_these_names_runs() -> None:
    layers = [layer for case in CASES.values() for layer in case[0]]
    whole = [stacked(layer, name=f"part{index}") for index, layer in enumerate(layers)]
    model = build(graph_of(*whole), seed=0)
    assert model(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 40)
