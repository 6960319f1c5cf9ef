"""Training passes that read keys and values as a quantized cache would return them.

Axes: B batch, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from caramba_core.components import Attention
from caramba_core.graph import Graph
from caramba_core.nn.cache import Cache, LayerCache
from caramba_core.storage import Storage

__all__ = ["RoundingCache"]


class RoundingLayer(LayerCache):
    """What one attention reads in a pass without a past: its own tokens, rounded; nothing is kept."""

    def extend(self, **new: Tensor) -> dict[str, Tensor]:
        """``[B, T, *shape]`` of each entry as the cache would return them.

        Gradients pass as if nothing was rounded (straight-through; Bengio, Léonard, Courville 2013, arXiv 1308.3432).
        """
        return {name: self._rounded(name, values) for name, values in new.items()}

    def _rounded(self, name: str, values: Tensor) -> Tensor:
        with torch.no_grad():
            rounded = self.round_trip(name, values).to(values.dtype)
        return rounded + (values - values.detach())


class RoundingCache(Cache):
    """A :class:`Cache` that rounds and keeps nothing, for passes over whole sequences that are trained on."""

    def __init__(self, graph: Graph, storage: Storage) -> None:
        super().__init__(graph, batch=1, dtype=torch.float32, storage=storage)
        self.graph = graph
        self._rounding = {
            name: RoundingLayer(node.config.cache_spec(node.width_in), 1, torch.float32, torch.device("cpu"), storage)
            for name, node in graph.attentions().items()
            if isinstance(node.config, Attention)
        }
        layers = list(self._rounding.values())
        equal = all(layer.spec == layers[0].spec for layer in layers)
        self._of_all = layers[0] if equal else None

    def layer(self, site: str, application: int = 0) -> LayerCache:
        """The same for every attention where all cache alike, so that equal blocks share one compiled graph."""
        return self._rounding[site] if self._of_all is None else self._of_all

    def advance(self, tokens: int) -> None:
        """Nothing was kept."""
