"""What decoding keeps, allocated from what attentions declare."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from caramba_core.component import Attention, CacheEntry
from caramba_core.graph import Graph
from caramba_core.nn.storing import codec
from caramba_core.storage import Storage

__all__ = ["Cache", "LayerCache"]

_SMALLEST_CAPACITY = 64
"""Tokens allocated at first by a cache that grows."""


class LayerCache:
    """The tensors of one attention: ``[B, capacity, *]`` for entries a token, ``[B, *shape]`` for states.

    States start as zeros.  An entry with a window holds so many tokens, oldest first: the first ``sinks`` of the text
    and the last ones.  With a :class:`~caramba_core.storage.Storage` entries a token are held rounded, and what is
    read, of this pass's tokens too, is what the rounded ones stand for.
    """

    def __init__(
        self,
        spec: Mapping[str, CacheEntry],
        batch: int,
        dtype: torch.dtype,
        device: torch.device,
        storage: Storage | None = None,
    ) -> None:
        self.spec = spec
        self.batch = batch
        self.length = 0
        self._device = device
        self._codecs = {name: codec(entry, dtype, storage) for name, entry in spec.items() if entry.per_token}
        self._planes = {name: self._empty(name, 0) for name in self._codecs}
        self._states = {
            name: torch.zeros(
                (batch, *entry.shape),
                dtype=dtype if entry.dtype is None else getattr(torch, entry.dtype),
                device=device,
            )
            for name, entry in spec.items()
            if not entry.per_token
        }

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything that is allocated; a rounded entry has two tensors, ``NAME.codes`` and ``NAME.blocks``."""
        planes = {
            name + suffix: plane
            for name, made in self._codecs.items()
            for suffix, plane in zip(made.planes, self._planes[name], strict=True)
        }
        return {**planes, **self._states}

    @property
    def lossy(self) -> bool:
        """Whether what is read differs from what was appended by more than a cast."""
        return any(made.lossy for made in self._codecs.values())

    def reserve(self, capacity: int) -> None:
        """Make room for ``capacity`` tokens in all."""
        for name in self._codecs:
            self._reserve(name, capacity)

    def _empty(self, name: str, tokens: int) -> tuple[Tensor, ...]:
        planes = self._codecs[name].planes.values()
        return tuple(
            torch.zeros(self.batch, tokens, *shape, dtype=dtype, device=self._device) for shape, dtype in planes
        )

    def _reserve(self, name: str, capacity: int) -> None:
        window, old = self.spec[name].window, self._planes[name]
        wanted = capacity if window is None else min(capacity, window)
        held = old[0].shape[1]
        if held < wanted:
            self._planes[name] = self._empty(name, wanted)
            for plane, before in zip(self._planes[name], old, strict=True):
                plane[:, :held] = before

    def extend(self, **new: Tensor) -> dict[str, Tensor]:
        """Append tokens ``[B, T, *shape]`` to every per-token entry; what they may see, ``[B, S, *shape]`` each.

        That is all that is cached and the new tokens; once a window is full: the sinks, the last tokens that the first
        new one sees beside itself (``window - sinks - 1``), and the new ones.  Attend to what is returned, in the first
        pass too: a cache may round.  The length moves on with :meth:`Cache.advance`, once all layers have run.
        """
        assert set(new) == set(self._codecs), "every entry grows together"
        return {name: self._append(name, values) for name, values in new.items()}

    def read(self, name: str, first: int, last: int) -> Tensor:
        """What is held of an entry in the places ``first`` to ``last`` (exclusive): ``[B, last - first, *shape]``."""
        return self._codecs[name].decode(tuple(plane[:, first:last] for plane in self._planes[name]))

    def rounded(self, name: str, values: Tensor) -> Tensor:
        """What would be read of tokens ``[B, T, *shape]``, which are not appended."""
        return self._codecs[name].decode(self._codecs[name].encode(values))

    def _append(self, name: str, values: Tensor) -> Tensor:
        entry, tokens = self.spec[name], values.shape[1]
        held = self.length if entry.window is None else min(self.length, entry.window)
        room = self._planes[name][0].shape[1]
        if room < held + tokens:
            self._reserve(name, max(held + tokens, 2 * room, _SMALLEST_CAPACITY))
        new = self._codecs[name].encode(values)
        seen = (_push(plane, part, held, entry) for plane, part in zip(self._planes[name], new, strict=True))
        return self._codecs[name].decode(tuple(seen))

    @property
    def bytes(self) -> int:
        """Bytes of the tensors as allocated."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())


def _push(plane: Tensor, new: Tensor, held: int, entry: CacheEntry) -> Tensor:
    """Write tokens ``[B, T, *]`` behind the ``held`` ones of a plane ``[B, capacity, *]``; what the new ones see."""
    window, sinks, tokens = entry.window, entry.sinks, new.shape[1]
    if window is None or held + tokens <= window:
        plane[:, held : held + tokens] = new
        return plane[:, : held + tokens]
    first = min(held, sinks)
    seen = torch.cat([plane[:, :first], plane[:, max(first, held - window + sinks + 1) : held], new], dim=1)
    plane[:, first:sinks] = seen[:, first:sinks]
    plane[:, sinks:] = seen[:, seen.shape[1] - window + sinks :]
    return seen


class Cache:
    """The caches of a whole model for ``batch`` sequences.

    ``capacity`` allocates room for so many tokens at once; without one the cache grows by doubling.  ``storage`` holds
    what is kept a token in few bits.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        batch: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        capacity: int | None = None,
        storage: Storage | None = None,
    ) -> None:
        self.length = 0
        self.batch = batch
        self._layers: dict[tuple[str, int], LayerCache] = {}
        for name, node in graph.attentions().items():
            assert isinstance(node.config, Attention)
            spec = node.config.cache_spec(node.width_in)
            for application in range(node.applications):
                layer = LayerCache(spec, batch, dtype, torch.device(device), storage)
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
