"""Saved activations, estimated from declared costs, against what autograd really keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from caramba_core.graph import Graph, trained_nodes
from caramba_core.nn.build import build
from caramba_core.plan import plan_model
from caramba_core.plan.runs import saved_bytes

from .shapes import chain, graph_of, residual

GQA = {"type": "gqa", "n_heads": 8, "n_kv_heads": 2, "head_dim": 16, "rope": {"theta": 100.0}}
DBA = {**GQA, "type": "dba", "sem_dim": 16, "geo_dim": 16, "v_dim": 16, "o_bias": True}
BATCH, CONTEXT = 3, 50


def graph_with(attention: dict[str, Any]) -> Graph:
    block = {"type": "nested", "repeat": 3, "layers": [residual(attention), residual({"type": "swiglu", "d_ff": 256})]}
    return graph_of(chain(block, {"type": "rms_norm"}), width=128)


def kept_by_autograd(graph: Graph, trained: frozenset[str], dtype: str) -> int:
    """Bytes of the storages saved for the backward pass of the layers, parameters and casts of them left out."""
    model = build(graph, seed=0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f"model.{name}".rpartition(".")[0] in trained)
    shapes = {tuple(parameter.shape) for parameter in model.parameters()}
    shapes |= {shape[::-1] for shape in shapes}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tuple(tensor.shape) not in shapes:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16")
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        model.hidden(torch.randint(0, 40, (BATCH, CONTEXT)))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(
    ("attention", "trains", "dtype", "within"),
    [
        (GQA, ["*"], "float32", 0.05),
        (DBA, ["*"], "float32", 0.10),
        (GQA, ["attention", "norm", "mlp"], "float32", 0.05),
        (GQA, ["mlp"], "float32", 0.10),
        (GQA, ["attention"], "float32", 0.35),
        (GQA, ["*"], "bfloat16", 0.25),
        (DBA, ["*"], "bfloat16", 0.30),
    ],
)
def test_saved_activations(attention: dict[str, Any], trains: list[str], dtype: str, within: float) -> None:
    graph = graph_with(attention)
    trained = trained_nodes(graph, trains)
    plan = plan_model(graph, context=CONTEXT)
    head = plan.roots[-1].own.saved * (2 if dtype == "bfloat16" else 4)  # the head ran outside the measured pass
    planned = BATCH * (sum(saved_bytes(plan, trained, dtype).values()) - head)
    assert planned == pytest.approx(kept_by_autograd(graph, trained, dtype), rel=within)


def test_nothing_is_saved_in_front_of_what_trains() -> None:
    graph = graph_with(GQA)
    plan = plan_model(graph, context=CONTEXT)
    last = sum(saved_bytes(plan, {"model.blocks.2.mlp"}, "float32").values())
    assert 0 < last < 0.25 * sum(saved_bytes(plan, trained_nodes(graph, ["*"]), "float32").values())
    assert saved_bytes(plan, frozenset(), "float32") == {}
