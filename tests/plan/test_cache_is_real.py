"""Cached bytes per token, from the tensors that hold them, against the plan's, for every preset."""

from __future__ import annotations

import pytest
import torch
from caramba_plugins_standard.quantized import Int4, Int8

from caramba_core.components import Storage
from caramba_core.graph import Graph
from caramba_core.lowered import lower_all
from caramba_core.manifest.load import load_manifest
from caramba_core.nn.build import build
from caramba_core.nn.cache import Cache
from caramba_core.nn.frame import Frame
from caramba_core.plan import plan_model

from .shapes import ATTENTIONS, chain, graph_of, preset_graphs, presets, residual

STORAGES = {"full": None, "int8": Int8(), "int4": Int4(), "int4 in blocks of 7": Int4(block=7)}


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.presets
@pytest.mark.parametrize("preset", presets())
def test_bytes_of_presets(preset: str, storage: str) -> None:
    """At full size: what is allocated for so many tokens."""
    for graph in preset_graphs(preset).values():
        plan = plan_model(graph, context=1024, dtype="bfloat16")
        for tokens in (0, 1, 63, 1024):
            held = Cache(
                graph, batch=2, dtype=torch.bfloat16, device="meta", capacity=tokens, storage=STORAGES[storage]
            )
            assert held.bytes == 2 * plan.cached_bytes(tokens, STORAGES[storage])
        assert plan.cached_bytes(1024) == plan.total.context_bytes


def shallow(preset: str) -> dict[str, Graph]:
    """The graphs of a preset with two blocks of its size."""
    blocks = load_manifest(preset).document["model"]["topology"]["layers"][0]
    own = ["model.topology.layers.0.order=[0, 1]"] if "order" in blocks else []
    return lower_all(load_manifest(preset, overrides=["model.topology.layers.0.repeat=2", *own]))[1]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.presets
@pytest.mark.parametrize("preset", [name for name in presets() if not name.startswith("llama")])
def test_bytes_while_decoding_presets(preset: str, storage: str) -> None:
    """Decoding 128 tokens into a cache that grows fills what the plan says of 128."""
    for graph in shallow(preset).values():
        check_decoding(graph, STORAGES[storage])


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_bytes_while_decoding(name: str, storage: str) -> None:
    check_decoding(graph_of(chain(residual(ATTENTIONS[name]))), STORAGES[storage])


def check_decoding(graph: Graph, storage: Storage | None) -> None:
    model = build(graph, dtype=torch.bfloat16)
    for tensor in model.state_dict().values():  # bytes do not depend on values
        tensor.zero_()
    plan = plan_model(graph, context=128, dtype="bfloat16")
    cache = model.new_cache(1, storage=storage)
    tokens = torch.zeros(1, 128, dtype=torch.long)
    with torch.no_grad():
        for piece in tokens.split([61, 1, 1, 1, 61, 1, 1, 1], dim=1):  # room doubles from 64 to 128
            model.hidden(piece, Frame.of(piece, cache=cache))
    layers = [
        cache.layer(name, application)
        for name, node in graph.attentions().items()
        for application in range(node.applications)
    ]
    held = sum(t.untyped_storage().nbytes() for layer in layers for t in layer.tensors.values())
    assert cache.length == 128
    assert held == cache.bytes == plan.cached_bytes(128, storage)
