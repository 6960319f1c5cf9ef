"""What decoding caches, allocated from what attentions declare in ``cache_spec``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from caramba_core.components import Attention, CacheEntry, Storage
from caramba_core.graph import Graph

__all__ = ["Cache", "EntryCache", "LayerCache"]

_SMALLEST_CAPACITY = 64
"""Tokens allocated at first by a cache that grows."""


class EntryCache:
    """The cached tokens of one entry, in tensors ``[B, capacity, *]`` ("planes") that each hold a part of every token.

    An entry with a window is a ring behind its sinks: token ``p`` of the text lies in place ``p`` until the window is
    full, then in ``sinks + (p - sinks) % (window - sinks)``.

    Axes: B batch, T tokens of this pass.
    """

    def __init__(
        self, entry: CacheEntry, batch: int, dtype: torch.dtype, device: torch.device, storage: Storage | None
    ) -> None:
        self.entry = entry
        self.storage = storage if storage is not None and storage.quantizes(entry) else None
        self.dtype = dtype if entry.dtype is None else getattr(torch, entry.dtype)
        layout: Mapping[str, tuple[tuple[int, ...], Any]] = {"": (entry.shape, self.dtype)}
        if self.storage is not None:
            planes = self.storage.planes(entry.values)
            layout = {suffix: (shape, getattr(torch, name)) for suffix, (shape, name) in planes.items()}
        self.planes = {
            suffix: torch.zeros(batch, 0, *shape, dtype=plane_dtype, device=device)
            for suffix, (shape, plane_dtype) in layout.items()
        }

    @property
    def room(self) -> int:
        """Tokens that fit without allocating."""
        return next(iter(self.planes.values())).shape[1]

    def encode(self, values: Tensor) -> tuple[Tensor, ...]:
        """The parts of tokens ``[B, T, *shape]`` in each plane, ``[B, T, *]``."""
        if self.storage is None:
            return (values.to(self.dtype),)
        return self.storage.encode(values.reshape(*values.shape[:2], self.entry.values))

    def decode(self, *planes: Tensor) -> Tensor:
        """What reading tokens returns, ``[B, T, *shape]`` in the type of the cache."""
        if self.storage is None:
            return planes[0]
        values = self.storage.decode(planes, self.entry.values)
        return values.to(self.dtype).view(*values.shape[:2], *self.entry.shape)

    def reserve(self, capacity: int) -> None:
        """Allocate room for ``capacity`` tokens of the text, or for the whole window."""
        wanted = capacity if self.entry.window is None else min(capacity, self.entry.window)
        for suffix, old in self.planes.items():
            if old.shape[1] < wanted:
                self.planes[suffix] = old.new_zeros(old.shape[0], wanted, *old.shape[2:])
                self.planes[suffix][:, : old.shape[1]] = old

    def append(self, values: Tensor, length: int) -> Tensor:
        """Write tokens ``[B, T, *shape]`` after the ``length`` ones of the text; all that they see, in order."""
        held = length if self.entry.window is None else min(length, self.entry.window)
        if self.room < held + values.shape[1]:
            self.reserve(max(held + values.shape[1], 2 * self.room, _SMALLEST_CAPACITY))
        new = zip(self.planes.values(), self.encode(values), strict=True)
        return self.decode(*(self._push(plane, part, length) for plane, part in new))

    def _push(self, plane: Tensor, new: Tensor, length: int) -> Tensor:
        """Write tokens ``[B, T, *]`` after ``length`` ones of the text; the part of a plane that the new ones see."""
        window, sinks, end = self.entry.window, self.entry.sinks, length + new.shape[1]
        if window is None or end <= window:
            plane.narrow(1, length, end - length).copy_(new)
            return plane.narrow(1, 0, end)
        first = min(length, sinks)
        before = max(min(length - first, window - sinks - 1), 0)
        seen = plane.new_empty(len(plane), first + before + new.shape[1], *plane.shape[2:])
        seen[:, :first], seen[:, first + before :] = plane[:, :first], new  # autocast on a CPU cats no float16
        seen[:, first : first + before] = self.last(plane, length, before)
        plane[:, first:sinks] = seen[:, first:sinks]
        kept = min(end - max(length, sinks), window - sinks)
        if kept:
            plane[:, self.places(end - kept, end)] = new[:, new.shape[1] - kept :]
        return seen

    def places(self, first: int, last: int) -> Tensor:
        """Where tokens ``first`` to ``last`` (exclusive) of the text lie, int64 ``[last - first]``."""
        return self.place(torch.arange(first, last, device=next(iter(self.planes.values())).device))

    def place(self, text: Tensor) -> Tensor:
        """The same for token numbers in a tensor."""
        window, sinks = self.entry.window, self.entry.sinks
        if window is None:
            return text
        return torch.where(text < window, text, sinks + (text - sinks) % max(window - sinks, 1))

    def last(self, plane: Tensor, length: int, count: int) -> Tensor:
        """The last ``count`` of the ``length`` tokens of the text in a plane, oldest first: ``[B, count, *]``."""
        if self.entry.window is None or length <= self.entry.window:
            return plane[:, length - count : length]
        return plane[:, self.places(length - count, length)]

    def put(self, values: Tensor, ends: Tensor) -> None:
        """Write one token a row, ``[B, 1, *shape]``, the last of ``ends`` ``[B]``; all of a sole sequence."""
        text, batch = ends - 1, len(next(iter(self.planes.values())))
        place, row = self.place(text), torch.arange(len(ends), device=ends.device).clamp(max=batch - 1)
        sinks_alone = self.entry.window == self.entry.sinks
        if sinks_alone:  # later tokens are not kept
            place = place.clamp(max=self.entry.sinks - 1)
        for plane, part in zip(self.planes.values(), self.encode(values), strict=True):
            new = part[:, 0]
            if sinks_alone:
                kept = (text < self.entry.sinks).view(-1, *[1] * (new.dim() - 1))
                new = torch.where(kept, new, plane[row, place])
            plane[row, place] = new


class LayerCache:
    """The cache of one attention: ``[B, capacity, *shape]`` per-token entries, ``[B, *shape]`` states, which are zeros.

    An entry with a window holds that many tokens: the first ``sinks`` of the text and the last ones.
    With a ``storage``, per-token entries are stored quantized, and reads dequantize.
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
        self._tokens: dict[str, EntryCache] = {}
        self._states: dict[str, Tensor] = {}
        for name, entry in spec.items():
            if not entry.per_token:
                state_dtype = dtype if entry.dtype is None else getattr(torch, entry.dtype)
                self._states[name] = torch.zeros(batch, *entry.shape, dtype=state_dtype, device=device)
            else:
                self._tokens[name] = EntryCache(entry, batch, dtype, device, storage)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything that is allocated; a quantized entry has two tensors, ``NAME.codes`` and ``NAME.blocks``."""
        planes = {
            f"{name}{suffix}": plane for name, tokens in self._tokens.items() for suffix, plane in tokens.planes.items()
        }
        return {**planes, **self._states}

    @property
    def bytes(self) -> int:
        """Bytes of the tensors as allocated."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @property
    def lossy(self) -> bool:
        """Whether any entry is quantized: reads return something else than what was appended."""
        return any(tokens.storage is not None for tokens in self._tokens.values())

    def reserve(self, capacity: int) -> None:
        """Make room for ``capacity`` tokens in all."""
        for tokens in self._tokens.values():
            tokens.reserve(capacity)

    def extend(self, **new: Tensor) -> dict[str, Tensor]:
        """Append ``[B, T, *shape]`` to every per-token entry; what the new tokens see, ``[B, S, *shape]`` each.

        That is all cached tokens and the new ones; once a window is full, the sinks, as many last tokens as the first
        new one sees beside itself (``window - sinks - 1``), and the new ones.  Attend to what is returned, not to what
        was passed in: the cache may quantize.  :meth:`Cache.advance` moves the length on, once all layers have run.
        """
        assert set(new) == set(self._tokens), "every entry grows together"
        return {name: self._tokens[name].append(values, self.length) for name, values in new.items()}

    def read_last(self, name: str, count: int) -> Tensor:
        """The last ``count`` cached tokens of an entry, oldest first: ``[B, count, *shape]``."""
        tokens = self._tokens[name]
        return tokens.decode(*(tokens.last(plane, self.length, count) for plane in tokens.planes.values()))

    def entry(self, name: str) -> EntryCache:
        """The cache of one per-token entry, for attentions that read it as it is stored."""
        return self._tokens[name]

    def put(self, ends: Tensor, **new: Tensor) -> None:
        """Write one token of each sequence, ``[B, 1, *shape]``, as the last of ``ends`` ``[B]`` tokens.

        For decode steps (:attr:`Frame.ends`), whose places are a tensor: nothing is allocated or returned, and
        :attr:`length` stays.
        """
        assert set(new) == set(self._tokens), "every entry grows together"
        for name, values in new.items():
            self._tokens[name].put(values, ends)

    def round_trip(self, name: str, values: Tensor) -> Tensor:
        """``[B, T, *shape]`` as the entry would return them, quantized and dequantized; nothing is appended."""
        return self._tokens[name].decode(*self._tokens[name].encode(values))


class Cache:
    """The caches of a whole model for ``batch`` sequences.

    ``capacity`` allocates room for that many tokens at once; without one the cache grows by doubling.  ``storage`` says
    how per-token entries are stored, instead of what each attention says (:attr:`Attention.cache`).
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
                layer = LayerCache(spec, batch, dtype, torch.device(device), storage or node.config.cache)
                layer.reserve(capacity or 0)
                self._layers[name, application] = layer

    def layer(self, site: str, application: int = 0) -> LayerCache:
        """The cache of the attention with this dotted name, for one of its applications in a pass."""
        return self._layers[site, application]

    def layers(self) -> Iterable[LayerCache]:
        """The caches of all attentions, for each of their applications."""
        return self._layers.values()

    @property
    def bytes(self) -> int:
        """Bytes of all tensors as allocated."""
        return sum(layer.bytes for layer in self._layers.values())

    def reserve(self, capacity: int) -> None:
        """Make room for ``capacity`` tokens in all; what is cached stays."""
        for layer in self._layers.values():
            layer.reserve(capacity)

    def advance(self, tokens: int) -> None:
        """Count the tokens of the pass that just ended as cached."""
        self._move(self.length + tokens)

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` tokens: speculative decoding drops rejected ones this way.

        States, and windows that have begun to slide, cannot go back (except to nothing): what they held is gone.
        """
        assert 0 <= length <= self.length, f"{length} tokens of {self.length} cannot be kept"
        for (site, _), layer in self._layers.items():
            for name, entry in layer.spec.items():
                gone = not entry.per_token or (entry.window is not None and self.length > entry.window)
                assert length in (0, self.length) or not gone, f"{name} of {site} cannot take tokens back"
                if length == 0 and not entry.per_token:
                    layer.tensors[name].zero_()
        self._move(length)

    def _move(self, length: int) -> None:
        self.length = length
        for layer in self._layers.values():
            layer.length = length
