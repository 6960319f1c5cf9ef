"""Repetitions of a group that differ by more than the values of fields."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caramba_document.source import SourceText, TextSpan
from caramba_document.tree import List, Map, MapItem, Node, Scalar, plain, replaced_at
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.layers import LayerNorm, LinearHead, RMSNorm, SwiGLU, TokenEmbedder
from caramba_plugins_standard.topologies import Nested, Residual, Stacked

from caramba_core.components import Model
from caramba_core.errors import InvalidValue
from caramba_core.lowering import lower
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


# ------------------------------------------------------------------------------------------------ as it is written


def tree_of(value: Any) -> Node:
    span = TextSpan(SourceText(name="m.yml", text=""), 0, 0)
    if isinstance(value, dict):
        return Map({key: MapItem(span, tree_of(item)) for key, item in value.items()}, span)
    return List(tuple(map(tree_of, value)), span) if isinstance(value, list) else Scalar(value, span)


NORM = {"type": "rms_norm"}
WIDE, THIN = [NORM, {"type": "swiglu", "d_ff": 8}, NORM], [NORM, NORM]
WRITTEN = {"type": "nested", "repeat": 4, "layers": WIDE, "variants": [THIN], "order": [0, 1, 0, 0]}


def rewritten(each: dict[str, Any], layer: dict[str, Any], *indices: int) -> Any:
    """The topology with the norm of some repetitions replaced."""
    config = Nested(
        repeat=4,
        layers=(RMSNorm(), SwiGLU(d_ff=8), RMSNorm()),
        variants=((RMSNorm(), RMSNorm()),),
        order=(0, 1, 0, 0),
        each={key: tuple(values) for key, values in each.items()},
    )
    path = ("layers", 0)
    other = ("variants", 0, 0)

    def change(index: int, written: Map) -> Map:
        if index in indices:
            written = replaced_at(written, other if index == 1 else path, tree_of(layer))  # type: ignore[assignment]
        return written

    written = tree_of({**WRITTEN, "each": each} if each else WRITTEN)
    assert isinstance(written, Map)
    nodes = [{"norm": path}, {"norm": other}, {"norm": path}, {"norm": path}]
    return plain(config.with_repetitions(written, nodes, change))


def test_repetitions_that_stay_alike_share_their_layers() -> None:
    found = rewritten({}, {"type": "layer_norm"}, 1, 3)
    assert (found["layers"], found["order"]) == (WIDE, [0, 1, 0, 2])
    assert found["variants"] == [[{"type": "layer_norm"}, NORM], [{"type": "layer_norm"}, *WIDE[1:]]]
    assert rewritten({}, {"type": "rms_norm"}, 2) == WRITTEN


def test_values_of_each_move_to_the_layers_that_they_belong_to() -> None:
    each = {"norm.eps": [0.01, 0.02, 0.01, 0.03], "norm_2.eps": [0.05, 0.06, 0.07, 0.08]}
    found = rewritten(each, {"type": "layer_norm"}, 3)
    assert found["each"] == {"norm_2.eps": each["norm_2.eps"]}
    assert found["layers"] == [{**NORM, "eps": 0.01}, *WIDE[1:]]
    assert found["variants"] == [[{**NORM, "eps": 0.02}, NORM], [{"type": "layer_norm"}, *WIDE[1:]]]
    assert found["order"] == [0, 1, 0, 2]
