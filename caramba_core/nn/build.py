"""From a graph to a model: import what the configs name, wire it, draw its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from caramba_core.components import Constant, Given, Topology, Weight
from caramba_core.graph import Graph, Node
from caramba_core.nn.language_model import LanguageModel
from caramba_core.nn.module import ComponentModule
from caramba_core.nn.sequence import LayerSequence, Wiring, chain
from caramba_core.plugins.guard import import_guarded

__all__ = ["build", "initialize", "load_object"]


def load_object(path: str) -> Any:
    """The object that an import path ``package.module:Name`` names."""
    module, _, name = path.partition(":")
    return getattr(import_guarded(module, module.partition(".")[0]), name)


def build(
    graph: Graph,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int | None = None,
) -> LanguageModel:
    """The model of a graph, on ``device`` in ``dtype``.

    Weights are drawn from ``seed``; without one they are left uninitialized, for a checkpoint to fill.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            layers, wiring = _sequence((graph.topology,))
            model = LanguageModel(graph, _module(graph.embedder), layers, wiring, _module(graph.head))
    finally:
        torch.set_default_dtype(before)
    if seed is not None:
        initialize(model, seed)
    return model


@torch.no_grad()
def initialize(model: nn.Module, seed: int, given: Container[str] = ()) -> None:
    """Draw every declared weight that is not ``given``; its values depend on its name and the seed alone."""
    for path, module in model.named_modules():
        if isinstance(module, ComponentModule):
            for name, weight in module.config.weights(module.width).items():
                if f"{path}.{name}" not in given:
                    getattr(module, name).copy_(_drawn(weight, f"{seed}:{path}.{name}"))


def _drawn(weight: Weight, key: str) -> Tensor:
    if isinstance(weight.init, Constant):
        return torch.full(weight.shape, weight.init.value, dtype=torch.float64)
    if isinstance(weight.init, Given):
        return torch.tensor(weight.init.values).expand(weight.shape)
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(weight.shape, generator=generator, dtype=torch.float32) * weight.init.std


def _sequence(nodes: Sequence[Node]) -> tuple[dict[str, nn.Module], Wiring]:
    """The modules of nodes by their local names, and their wiring; inline topologies are unfolded."""
    layers: dict[str, nn.Module] = {}
    wiring: list[Any] = []
    for node in nodes:
        if node.inline:
            inner_layers, inner = _inlined(node)
            layers.update(inner_layers)
            wiring.extend(inner)
        else:
            local = node.name.rsplit(".", 1)[-1]
            layers[local] = _module(node)
            wiring.append(local)
    return layers, tuple(wiring)


def _inlined(node: Node) -> tuple[dict[str, nn.Module], Wiring]:
    """The same of the layers of an inline topology, its function around them; a plain list adds nothing."""
    (scope,) = node.scopes
    layers, wiring = _sequence(scope.nodes)
    assert isinstance(node.config, Topology)
    assert node.config.inline is not None
    inline = load_object(node.config.inline)
    return layers, wiring if inline is chain else ((inline, wiring),)


def _module(node: Node) -> nn.Module:
    config = node.config
    if isinstance(config, Topology) and config.inline is not None:
        return LayerSequence(*_inlined(node))  # with a name of its own, it holds its layers
    bodies = {scope.name.rsplit(".", 1)[-1]: LayerSequence(*_sequence(scope.nodes)) for scope in node.scopes}
    arguments = (config, node.width_in, bodies) if isinstance(config, Topology) else (config, node.width_in)
    module = load_object(config.builds)(*arguments)
    assert isinstance(module, nn.Module)
    if isinstance(module, ComponentModule):
        module.site = node.name
    return module
