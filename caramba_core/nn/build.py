"""From a graph to a model: import what the configs name, wire it, fill it."""

from __future__ import annotations

import hashlib
from importlib import import_module
from typing import Any

import torch
from torch import nn

from caramba_core.component import Constant, Given, Layer, Topology
from caramba_core.graph import Graph, Node
from caramba_core.nn.language_model import LanguageModel
from caramba_core.nn.module import ComponentModule
from caramba_core.nn.sequence import Sequence, Wiring, chain

__all__ = ["build", "initialize", "load_object"]


def load_object(path: str) -> Any:
    """What an import path ``package.module:Name`` of a plugin's own code stands for."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def build(
    graph: Graph,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int | None = None,
) -> LanguageModel:
    """The model of a graph.

    Weights are drawn from ``seed``; without one they are left unset, for a checkpoint to fill.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            layers, wiring = _chain((graph.topology,))
            model = LanguageModel(graph, _leaf(graph.embedder), layers, wiring, _leaf(graph.head))
    finally:
        torch.set_default_dtype(before)
    if seed is not None:
        initialize(model, seed)
    return model


def initialize(model: nn.Module, seed: int) -> None:
    """Draw every declared weight from a generator of its own: values depend on its name and the seed alone."""
    for path, module in model.named_modules():
        if isinstance(module, ComponentModule):
            for name, weight in module.config.weights(module.width).items():
                tensor = getattr(module, name)
                with torch.no_grad():
                    if isinstance(weight.init, Constant):
                        tensor.fill_(weight.init.value)
                    elif isinstance(weight.init, Given):
                        tensor.copy_(torch.tensor(weight.init.values).expand(weight.shape))
                    else:
                        digest = hashlib.blake2b(f"{seed}:{path}.{name}".encode(), digest_size=8).digest()
                        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
                        drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
                        tensor.copy_(drawn * weight.init.std)


def _chain(nodes: tuple[Node, ...]) -> tuple[dict[str, nn.Module], Wiring]:
    """The modules of a chain under their local names, and how they are wired; inline topologies are unfolded."""
    layers: dict[str, nn.Module] = {}
    wiring: list[Any] = []
    for node in nodes:
        if node.inline:
            (scope,) = node.scopes
            inner_layers, inner_wiring = _chain(scope.nodes)
            layers.update(inner_layers)
            assert isinstance(node.config, Topology)
            assert node.config.inline is not None
            inline = load_object(node.config.inline)
            if inline is chain:
                wiring.extend(inner_wiring)
            else:
                wiring.append((inline, inner_wiring))
        else:
            local = node.name.rsplit(".", 1)[-1]
            layers[local] = _module(node)
            wiring.append(local)
    return layers, tuple(wiring)


def _module(node: Node) -> nn.Module:
    if not isinstance(node.config, Topology):
        return _leaf(node)
    bodies = {}
    for scope in node.scopes:
        layers, wiring = _chain(scope.nodes)
        bodies[scope.name.rsplit(".", 1)[-1]] = Sequence(layers, wiring)
    if node.config.inline is not None:  # an inline topology with a name of its own: a scope that holds it
        (body,) = bodies.values()
        inline = load_object(node.config.inline)
        return body if inline is chain else Sequence(dict(body.named_children()), ((inline, body.wiring),))
    module = load_object(node.config.builds)(node.config, node.width_in, bodies)
    assert isinstance(module, nn.Module)
    return module


def _leaf(node: Node) -> nn.Module:
    assert isinstance(node.config, Layer)
    module = load_object(node.config.builds)(node.config, node.width_in)
    assert isinstance(module, nn.Module)
    if isinstance(module, ComponentModule):
        module.site = node.name
    return module
