"""The tensors of one per-token entry of a cache: values as they were computed, or quantized in blocks.

Axes: B batch, T tokens of this pass, S tokens of the cache, C values per token, n blocks per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from caramba_core.component import CacheEntry
from caramba_core.storage import Storage

__all__ = ["Tokens", "dequantize", "quantize"]

_SMALLEST_CAPACITY = 64
"""Tokens allocated at first by a cache that grows."""


class Tokens:
    """The cached tokens of one entry, in planes ``[B, capacity, *]`` of which each token has its own part."""

    def __init__(
        self, entry: CacheEntry, batch: int, dtype: torch.dtype, device: torch.device, storage: Storage | None
    ) -> None:
        self.entry = entry
        self.storage = storage if storage is not None and storage.quantizes(entry) else None
        self.dtype = dtype if entry.dtype is None else getattr(torch, entry.dtype)
        layout = {"": (entry.shape, self.dtype)}
        if self.storage is not None:
            codes, blocks = (self.storage.code_bytes(entry),), (self.storage.blocks(entry), 2)
            layout = {".codes": (codes, torch.uint8), ".blocks": (blocks, torch.float16)}
        self.planes = {
            suffix: torch.zeros(batch, 0, *shape, dtype=plane_dtype, device=device)
            for suffix, (shape, plane_dtype) in layout.items()
        }

    def encode(self, values: Tensor) -> tuple[Tensor, ...]:
        """The parts of tokens ``[B, T, *shape]`` in each plane, ``[B, T, *]``."""
        if self.storage is None:
            return (values.to(self.dtype),)
        return quantize(values.reshape(*values.shape[:2], self.entry.values), self.storage)

    def decode(self, *planes: Tensor) -> Tensor:
        """What reading tokens returns, ``[B, T, *shape]`` in the type of the cache."""
        if self.storage is None:
            return planes[0]
        codes, blocks = planes
        values = dequantize(codes, blocks, self.entry.values, self.storage)
        return values.to(self.dtype).view(*values.shape[:2], *self.entry.shape)

    def read(self, first: int, last: int) -> Tensor:
        """The tokens in the places ``first`` to ``last`` (exclusive)."""
        return self.decode(*(plane[:, first:last] for plane in self.planes.values()))

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
        room = next(iter(self.planes.values())).shape[1]
        if room < held + values.shape[1]:
            self.reserve(max(held + values.shape[1], 2 * room, _SMALLEST_CAPACITY))
        new = zip(self.planes.values(), self.encode(values), strict=True)
        return self.decode(*(self._push(plane, part, held) for plane, part in new))

    def _push(self, plane: Tensor, new: Tensor, held: int) -> Tensor:
        """Write tokens ``[B, T, *]`` after the ``held`` ones of a plane; the part of it that the new ones see."""
        window, sinks, tokens = self.entry.window, self.entry.sinks, new.shape[1]
        if window is None or held + tokens <= window:
            plane[:, held : held + tokens] = new
            return plane[:, : held + tokens]
        first = min(held, sinks)
        seen = torch.cat([plane[:, :first], plane[:, max(first, held - window + sinks + 1) : held], new], dim=1)
        plane[:, first:sinks] = seen[:, first:sinks]
        plane[:, sinks:] = seen[:, seen.shape[1] - window + sinks :]
        return seen


def quantize(values: Tensor, storage: Storage) -> tuple[Tensor, Tensor]:
    """Codes ``[B, T, bytes]``, and step and least value of each block ``[B, T, n, 2]``, of values ``[B, T, C]``.

    A value is ``least + step * code`` with codes ``0 .. 2^bits - 1``.  Steps and least values are rounded to float16
    before codes are chosen: a value comes back off by at most half a step plus that rounding, and must lie in float16's
    range (65504).
    """
    count = values.shape[2]
    missing = -count % storage.block
    padded = torch.cat([values, values[..., -1:].expand(*values.shape[:2], missing)], dim=2)
    wide = padded.to(torch.promote_types(padded.dtype, torch.float32))
    blocks = wide.view(*wide.shape[:2], -1, storage.block)
    top = 2**storage.bits - 1
    least = blocks.amin(-1).half()
    step = ((blocks.amax(-1) - least) / top).half()
    spread = torch.where(step > 0, step, 1.0).to(blocks.dtype)  # a block of equal values is its least value
    codes = ((blocks - least[..., None]) / spread[..., None]).round().clamp(0, top).to(torch.uint8)
    codes = codes.flatten(2)[..., :count]
    if storage.bits == 4:  # two codes in a byte, the first in the low bits
        packed, odd = codes[..., ::2].clone(), codes[..., 1::2]
        packed[..., : odd.shape[-1]] |= odd << 4
        codes = packed
    return codes, torch.stack([step, least], dim=-1)


def dequantize(codes: Tensor, blocks: Tensor, count: int, storage: Storage) -> Tensor:
    """The ``count`` values of each token, ``[B, T, C]`` in float32, that :func:`quantize` stored."""
    if storage.bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(2)[..., :count]
    step, least = (part.repeat_interleave(storage.block, -1)[..., :count] for part in blocks.float().unbind(-1))
    return torch.addcmul(least, step, codes)
