"""Repetitions of a group that differ by more than the values of fields."""

from __future__ import annotations

import pytest
import torch
from caramba_plugins_standard.embedding import LinearHead, TokenEmbedder
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.norms import LayerNorm, RMSNorm
from caramba_plugins_standard.swiglu import SwiGLU
from caramba_plugins_standard.topologies import Nested, Residual, Stacked

from caramba_core.errors import InvalidValue
from caramba_core.lowering import lower
from caramba_core.model import Model
from caramba_core.nn.build import build

ATTENTION = (Residual(layers=(RMSNorm(), GroupedQueryAttention(n_heads=2, n_kv_heads=1, head_dim=4))),)
MLP = (Residual(layers=(LayerNorm(), SwiGLU(d_ff=8))),)


def graph_of(nested: Nested):  # type: ignore[no-untyped-def]
    return lower(
        Model(head=LinearHead(), embedder=TokenEmbedder(vocab_size=9, d_model=6), topology=Stacked(layers=(nested,)))
    )


def test_each_repetition_has_the_layers_that_the_order_names() -> None:
    nested = Nested(name="blocks", repeat=4, layers=ATTENTION, variants=(MLP,), order=(0, 1, 1, 0))
    graph = graph_of(nested)
    names = [name for name in graph.nodes() if name.count(".") == 3]
    assert [name.removeprefix("model.blocks.") for name in names] == [
        "0.norm", "0.attention", "1.norm", "1.mlp", "2.norm", "2.mlp", "3.norm", "3.attention",
    ]  # fmt: skip
    assert graph.nodes()["model.blocks.1.mlp"].path == ("model", "topology", "layers", 0, "variants", 0, 0, "layers", 1)
    model = build(graph, seed=0)
    logits = model(torch.tensor([[1, 2, 3]]))
    assert logits.shape == (1, 3, 9)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_fields_by_repetition_reach_variants_too() -> None:
    nested = Nested(repeat=3, layers=ATTENTION, variants=(MLP,), order=(0, 1, 0), each={"norm.eps": (1e-3, 1e-4, 1e-5)})
    nodes = graph_of(nested).nodes()
    assert [nodes[f"model.blocks.{index}.norm"].config.eps for index in range(3)] == [1e-3, 1e-4, 1e-5]


@pytest.mark.parametrize(
    ("variants", "order", "field"),
    [
        ((MLP,), (0, 1), "order"),
        ((MLP,), (0, 1, 2), "order"),
        ((MLP,), (0, -1, 1), "order"),
        ((MLP,), (0, 0, 0), "variants"),
        ((MLP,), (), "variants"),
        (((),), (0, 1, 0), "layers"),
    ],
)
def test_an_order_that_cannot_be(
    variants: tuple[tuple[Residual, ...], ...], order: tuple[int, ...], field: str
) -> None:
    with pytest.raises(InvalidValue) as caught:
        Nested(repeat=3, layers=ATTENTION, variants=variants, order=order)
    assert caught.value.field == field
