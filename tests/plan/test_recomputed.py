"""Activation checkpointing: the same gradients, and what is kept for the backward pass is what the plan says."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from caramba_plugins_standard.modes import Train
from caramba_plugins_standard.training.compiling import compile_blocks
from caramba_plugins_standard.training.planning import recomputed_parts
from caramba_plugins_standard.training.recomputing import recompute_activations
from torch import Tensor

from caramba_core.graph import Graph, trained_nodes
from caramba_core.manifest.structure import Structurer
from caramba_core.modes import Evaluation
from caramba_core.nn.build import build
from caramba_core.plan import Memory, ModelPlan, RunPlan, plan_model
from caramba_core.plan.runs import training_memory
from caramba_core.plugins.registry import registry

from .shapes import TOPOLOGIES, chain, graph_of, residual
from .test_estimates import BATCH, CONTEXT, DBA, GQA, graph_with

DROPOUT = {"type": "dropout", "p": 0.2}


def gradients(graph: Graph, which: Any, *, backend: str | None = None) -> list[Tensor]:
    model = build(graph, seed=0)
    recompute_activations(model, which)
    if backend is not None:
        compile_blocks(model, backend=backend)
    torch.manual_seed(5)
    model.hidden(torch.randint(0, 40, (2, 11))).square().sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("which", ["full", ("*",)])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_gradients_are_those_of_the_plain_pass_bit_for_bit(name: str, which: Any) -> None:
    layers = TOPOLOGIES[name]
    layers = chain(layers, residual(DROPOUT)) if "nested" in name else layers
    graph = graph_of(layers, tied=False)
    for plain, again in zip(gradients(graph, "none"), gradients(graph, which), strict=True):
        assert torch.equal(plain, again)


@pytest.mark.parametrize("which", ["full", ("attention", "blocks.1.mlp")])
def test_compiled_blocks_recompute_too(which: Any) -> None:
    graph = graph_with(GQA)
    plain = gradients(graph, "none", backend="aot_eager")
    for one, other in zip(plain, gradients(graph, which, backend="aot_eager"), strict=True):
        assert torch.equal(one, other)


def test_names_of_parts() -> None:
    graph = graph_with(GQA)
    assert recomputed_parts(graph, "full") == [f"model.blocks.{index}" for index in range(3)]
    assert recomputed_parts(graph, ("blocks.*",))[:2] == ["model.blocks.0.norm", "model.blocks.0.attention"]
    assert recomputed_parts(graph, ("blocks", "mlp")) == ["model.blocks"]
    assert recomputed_parts(graph_of(chain(residual(GQA))), "full") == ["model.norm", "model.attention"]
    assert recomputed_parts(graph, "none") == []


def kept_by_autograd(graph: Graph, trained: frozenset[str], which: Any, dtype: str) -> int:
    """Bytes of the storages that the forward pass leaves to the backward pass, weights and casts of them left out."""
    model = build(graph, seed=0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f"model.{name}".rpartition(".")[0] in trained)
    recompute_activations(model, which)
    shapes = {tuple(parameter.shape) for parameter in model.parameters()}
    shapes |= {shape[::-1] for shape in shapes}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tuple(tensor.shape) not in shapes and tensor.numel() > CONTEXT:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        model.hidden(torch.randint(0, 40, (BATCH, CONTEXT)))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("attention", "trains", "which", "within"),
    [
        (GQA, ["*"], "full", 0.05),
        (DBA, ["*"], "full", 0.05),
        (GQA, ["attention", "norm", "mlp"], "full", 0.05),
        (GQA, ["blocks.[12].mlp"], "full", 0.05),
        (GQA, ["*"], ["mlp"], 0.20),
        (GQA, ["*"], ["attention"], 0.25),
    ],
)
def test_kept_activations(attention: dict[str, Any], trains: list[str], which: Any, within: float, dtype: str) -> None:
    graph = graph_with(attention)
    run = train(trains=trains, activation_checkpointing=which, dtype=dtype)
    trained = trained_nodes(graph, trains)
    model = plan_model(graph, context=CONTEXT)
    plan = plan_of(run, model, trained)
    planned = run.planned(plan, model, None, frozenset()).memory
    head = model.roots[-1].own.saved * (2 if dtype == "bfloat16" else 4)  # the head ran outside the measured pass
    found = kept_by_autograd(graph, trained, run.train.activation_checkpointing, dtype)
    assert planned.activations - BATCH * head == pytest.approx(found, rel=within)
    assert planned.activations < plan.memory.activations
    assert planned.working >= plan.memory.working
    assert attrs.evolve(planned, activations=0, working=0) == attrs.evolve(plan.memory, activations=0, working=0)


def plan_of(run: Train, model: ModelPlan, trained: frozenset[str]) -> RunPlan:
    """What the workload alone tells."""
    known = Memory(weights=0, shared=0, teacher=None)
    return RunPlan(
        **dict.fromkeys(("trained_parameters", "tokens", "operations"), 0),
        id="a",
        mode="train",
        continues=None,
        trains=run.trains,
        dtype=run.train.dtype,
        batch_size=BATCH,
        context=CONTEXT,
        memory=training_memory(known, model, run.workload(Evaluation(), 40), trained),
    )


@pytest.mark.parametrize(("hidden", "states"), [(None, 0), ({}, 3), ({"blocks": [0, 2]}, 2)])
def test_hidden_states_of_a_teacher(hidden: dict[str, Any] | None, states: int) -> None:
    graph = graph_with(GQA)
    run = train(strategy={"type": "upcycle.global", "hidden": hidden}, dtype="bfloat16")
    model = plan_model(graph, context=CONTEXT)
    plan = plan_of(run, model, trained_nodes(graph, ("*",)))
    planned = run.planned(plan, model, None, frozenset()).memory
    assert planned.activations - plan.memory.activations == states * BATCH * CONTEXT * 128 * 2


def train(**settings: Any) -> Train:
    written = {"strategy": "pretrain", "lr": 1e-3, "batch_size": BATCH, "context": CONTEXT, **settings}
    made = Structurer(registry()).structure({"id": "a", "mode": "train", "steps": 1, "train": written}, Train)
    assert isinstance(made, Train)
    return made
