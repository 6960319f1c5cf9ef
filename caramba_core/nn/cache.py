"""What decoding keeps, allocated from what attentions declare."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from caramba_core.component import Attention, CacheEntry
from caramba_core.graph import Graph

__all__ = ["Cache", "LayerCache"]

_SMALLEST_CAPACITY = 64
"""Tokens allocated at first by a cache that grows."""


class LayerCache:
    """The tensors of one attention: ``[B, capacity, *shape]`` for entries a token, ``[B, *shape]`` for states.

    States start as zeros.
    """

    def __init__(self, spec: Mapping[str, CacheEntry], batch: int, dtype: torch.dtype, device: torch.device) -> None:
        self.spec = spec
        self.batch = batch
        self.length = 0
        self._default_dtype = dtype
        self._device = device
        self.tensors: dict[str, Tensor] = {
            name: torch.zeros((batch, 0, *e.shape) if e.per_token else (batch, *e.shape), dtype=self._dtype(e), device=device)
            for name, e in spec.items()
        }

    def _dtype(self, entry: CacheEntry) -> torch.dtype:
        if entry.dtype is None:
            return self._default_dtype
        dtype = getattr(torch, entry.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def reserve(self, capacity: int) -> None:
        """Make room for ``capacity`` tokens in all."""
        for name, entry in self.spec.items():
            old = self.tensors[name]
            if entry.per_token and old.shape[1] < capacity:
                new = torch.zeros((self.batch, capacity, *entry.shape), dtype=old.dtype, device=old.device)
                new[:, : self.length] = old[:, : self.length]
                self.tensors[name] = new

    def extend(self, **new: Tensor) -> dict[str, Tensor]:
        """Append tokens ``[B, T, *shape]`` to every per-token entry; what is cached now, ``[B, S, *shape]`` each.

        The length moves on with :meth:`Cache.advance`, once all layers have run.
        """
        assert set(new) == {name for name, entry in self.spec.items() if entry.per_token}, "every entry grows together"
        grown = {}
        for name, values in new.items():
            end = self.length + values.shape[1]
            if self.tensors[name].shape[1] < end:
                self.reserve(max(end, 2 * self.tensors[name].shape[1], _SMALLEST_CAPACITY))
            self.tensors[name][:, self.length : end] = values
            grown[name] = self.tensors[name][:, :end]
        return grown

    @property
    def bytes(self) -> int:
        """Bytes of the tensors as allocated."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())


class Cache:
    """The caches of a whole model for ``batch`` sequences.

    ``capacity`` allocates room for so many tokens at once; without one the cache grows by doubling.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        batch: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        capacity: int | None = None,
    ) -> None:
        self.length = 0
        self.batch = batch
        self._layers: dict[tuple[str, int], LayerCache] = {}
        for name, node in graph.attentions().items():
            assert isinstance(node.config, Attention)
            spec = node.config.cache_spec(node.width_in)
            for application in range(node.applications):
                layer = LayerCache(spec, batch, dtype, torch.device(device))
                if capacity is not None:
                    layer.reserve(capacity)
                self._layers[name, application] = layer

    def layer(self, site: str, application: int = 0) -> LayerCache:
        """The part of the attention with this dotted name."""
        return self._layers[site, application]

    def advance(self, tokens: int) -> None:
        """Take the tokens of the pass that just ended as cached."""
        self.truncate(self.length + tokens)

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` tokens (speculative decoding takes rejected ones back this way)."""
        self.length = length
        for layer in self._layers.values():
            layer.length = length

    @property
    def bytes(self) -> int:
        """Bytes of all tensors as allocated."""
        return sum(layer.bytes for layer in self._layers.values())
