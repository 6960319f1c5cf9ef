"""Training passes that read keys and values as a quantized cache would return them.

Axes: B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from caramba_core.components import Attention, Storage
from caramba_core.graph import Graph
from caramba_core.nn.cache import Cache, LayerCache

__all__ = ["RoundingCache", "rounding_cache"]

_Entries = tuple[tuple[str, tuple[int, ...]], ...]
"""What an attention caches of a token: names and shapes."""


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


class _Together(LayerCache):
    """Layers that cache different entries, told apart by these and not by the name of a site.

    A compiled block that asks for its own site's layer is compiled for that site alone.
    """

    def __init__(self, layers: Mapping[_Entries, RoundingLayer]) -> None:
        super().__init__({}, 1, torch.float32, torch.device("cpu"))
        self._layers = dict(layers)

    def extend(self, **new: Tensor) -> dict[str, Tensor]:
        """As the layer with these entries does."""
        return self._layers[tuple((name, tuple(new[name].shape[2:])) for name in sorted(new))].extend(**new)


class RoundingCache(Cache):
    """A :class:`Cache` that rounds and keeps nothing, for passes over whole sequences that are trained on.

    Attentions without a storage, neither this one for all nor their own, read what they computed.
    """

    def __init__(self, graph: Graph, storage: Storage | None = None) -> None:
        super().__init__(graph, batch=1, dtype=torch.float32, storage=storage)
        self.graph = graph
        self._rounding: dict[str, RoundingLayer] = {}
        kinds: dict[_Entries, list[tuple[Storage | None, RoundingLayer]]] = {}
        for name, node in graph.attentions().items():
            assert isinstance(node.config, Attention)
            spec, own = node.config.cache_spec(node.width_in), storage or node.config.cache
            entries = tuple((entry, spec[entry].shape) for entry in sorted(spec))
            self._rounding[name] = RoundingLayer(spec, 1, torch.float32, torch.device("cpu"), own)
            kinds.setdefault(entries, []).append((own, self._rounding[name]))
        self.rounds = any(layer.lossy for layer in self._rounding.values())
        alike = all(own == of[0][0] for of in kinds.values() for own, _ in of)
        self._of_all = _Together({entries: of[0][1] for entries, of in kinds.items()}) if alike else None

    def layer(self, site: str, application: int = 0) -> LayerCache:
        """The same for every attention where equal entries are stored alike: equal blocks share one compiled graph."""
        return self._rounding[site] if self._of_all is None else self._of_all

    def advance(self, tokens: int) -> None:
        """Nothing was kept."""


def rounding_cache(graph: Graph, storage: Storage | None) -> RoundingCache | None:
    """What rounds in a run that trains ``graph``; ``None`` where all is cached as it is computed.

    ``storage`` is that of all attentions; each one's own if not given.
    """
    cache = RoundingCache(graph, storage)
    return cache if cache.rounds else None
