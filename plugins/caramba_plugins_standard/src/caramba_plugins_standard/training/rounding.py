"""Training passes that read keys and values as a quantized cache would return them.

Axes: B batch, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from caramba_core.components import Attention, Storage
from caramba_core.graph import Graph
from caramba_core.nn.cache import Cache, LayerCache

__all__ = ["RoundingCache", "rounding_cache"]


class RoundingLayer(LayerCache):
    """What one attention reads in a pass without a past: its own tokens, rounded; nothing is kept."""

    def extend(self, **new: Tensor) -> dict[str, Tensor]:
        """``[B, T, *shape]`` of each entry as the cache would return them.

        Gradients pass as if nothing was rounded (straight-through; Bengio, Léonard, Courville 2013, arXiv 1308.3432).
        """
        return {name: self._rounded(name, values) for name, values in new.items()}

    def _rounded(self, name: str, values: Tensor) -> Tensor:
        if self.entry(name).storage is None:
            return values
        with torch.no_grad():
            rounded = self.round_trip(name, values).to(values.dtype)
        return rounded + (values - values.detach())


class RoundingCache(Cache):
    """A :class:`Cache` that rounds and keeps nothing, for passes over whole sequences that are trained on.

    Attentions without a storage, neither this one for all nor their own, read what they computed.
    """

    def __init__(self, graph: Graph, storage: Storage | None = None) -> None:
        super().__init__(graph, batch=1, dtype=torch.float32, storage=storage)
        self.graph = graph
        self._rounding: dict[str, RoundingLayer] = {}
        kinds = []
        for name, node in graph.attentions().items():
            assert isinstance(node.config, Attention)
            spec, own = node.config.cache_spec(node.width_in), storage or node.config.cache
            self._rounding[name] = RoundingLayer(spec, 1, torch.float32, torch.device("cpu"), own)
            kinds.append((spec, own))
        self.rounds = any(layer.lossy for layer in self._rounding.values())
        self._of_all = self._rounding[name] if all(kind == kinds[0] for kind in kinds) else None

    def layer(self, site: str, application: int = 0) -> LayerCache:
        """The same for every attention where all cache alike, so that equal blocks share one compiled graph."""
        return self._rounding[site] if self._of_all is None else self._of_all

    def advance(self, tokens: int) -> None:
        """Nothing was kept."""


def rounding_cache(graph: Graph, storage: Storage | None) -> RoundingCache | None:
    """What rounds in a run that trains ``graph``; ``None`` where all is cached as it is computed.

    ``storage`` is that of all attentions; each one's own if not given.
    """
    cache = RoundingCache(graph, storage)
    return cache if cache.rounds else None
