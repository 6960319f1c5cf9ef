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

    States start as zeros.  An entry with a window holds so many tokens, oldest first: the first ``sinks`` of the text
    and the last ones.
    """

    def __init__(self, spec: Mapping[str, CacheEntry], batch: int, dtype: torch.dtype, device: torch.device) -> None:
        self.spec = spec
        self.batch = batch
        self.length = 0
        self.tensors: dict[str, Tensor] = {
            name: torch.zeros(
                (batch, 0, *entry.shape) if entry.per_token else (batch, *entry.shape),
                dtype=dtype if entry.dtype is None else getattr(torch, entry.dtype),
                device=device,
            )
            for name, entry in spec.items()
        }

    def reserve(self, capacity: int) -> None:
        """Make room for ``capacity`` tokens in all."""
        for name in self.spec:
            self._reserve(name, capacity)

    def _reserve(self, name: str, capacity: int) -> None:
        entry, old = self.spec[name], self.tensors[name]
        wanted = capacity if entry.window is None else min(capacity, entry.window)
        if entry.per_token and old.shape[1] < wanted:
            new = torch.zeros((self.batch, wanted, *entry.shape), dtype=old.dtype, device=old.device)
            new[:, : old.shape[1]] = old
            self.tensors[name] = new

    def extend(self, **new: Tensor) -> dict[str, Tensor]:
        """Append tokens ``[B, T, *shape]`` to every per-token entry; what they may see, ``[B, S, *shape]`` each.

        That is all that is cached and the new tokens; once a window is full: the sinks, the last tokens that the first
        new one sees beside itself (``window - sinks - 1``), and the new ones.  The length moves on with
        :meth:`Cache.advance`, once all layers have run.
        """
        assert set(new) == {name for name, entry in self.spec.items() if entry.per_token}, "every entry grows together"
        return {name: self._append(name, values) for name, values in new.items()}

    def _append(self, name: str, values: Tensor) -> Tensor:
        window, sinks = self.spec[name].window, self.spec[name].sinks
        tokens = values.shape[1]
        held = self.length if window is None else min(self.length, window)
        room = self.tensors[name].shape[1]
        if room < held + tokens:
            self._reserve(name, max(held + tokens, 2 * room, _SMALLEST_CAPACITY))
        tensor = self.tensors[name]
        if window is None or held + tokens <= window:
            tensor[:, held : held + tokens] = values
            return tensor[:, : held + tokens]
        first = min(held, sinks)
        before = (tensor[:, :first], tensor[:, max(first, held - window + sinks + 1) : held])
        seen = torch.cat([*before, values.to(tensor.dtype)], dim=1)
        tensor[:, first:sinks] = seen[:, first:sinks]
        tensor[:, sinks:] = seen[:, seen.shape[1] - window + sinks :]
        return seen

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
        self._move(self.length + tokens)

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` tokens (speculative decoding takes rejected ones back this way).

        States, and windows that have begun to slide, cannot go back: what they held is gone.
        """
        assert 0 <= length <= self.length, f"{length} tokens of {self.length} cannot be kept"
        for (site, _), layer in self._layers.items():
            for name, entry in layer.spec.items():
                going_back = length < self.length and length > 0
                slid = entry.window is not None and self.length > entry.window
                assert not (going_back and (slid or not entry.per_token)), f"{name} of {site} cannot take tokens back"
                if length == 0 and not entry.per_token:
                    layer.tensors[name].zero_()
        self._move(length)

    def _move(self, length: int) -> None:
        self.length = length
        for layer in self._layers.values():
            layer.length = length

    @property
    def bytes(self) -> int:
        """Bytes of all tensors as allocated."""
        return sum(layer.bytes for layer in self._layers.values())
