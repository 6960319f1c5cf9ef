"""What a cached entry looks like in memory: as it was computed, or rounded in blocks.

Axes: B batch, T tokens, C values of a token, n blocks of a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from caramba_core.component import CacheEntry
from caramba_core.storage import Storage

__all__ = ["Codec", "codec"]

Planes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape of a token's part and type of each plane, by what its name ends in."""


class Codec(Protocol):
    """Tokens of one entry, ``[B, T, *shape]``, as planes ``[B, T, *]`` of which each token has its own part."""

    planes: Planes
    lossy: bool

    def encode(self, values: Tensor) -> tuple[Tensor, ...]:
        """The planes, in the order of ``planes``."""
        ...

    def decode(self, planes: tuple[Tensor, ...]) -> Tensor:
        """What reading gives."""
        ...


def codec(entry: CacheEntry, dtype: torch.dtype, storage: Storage | None) -> Codec:
    """How the per-token ``entry`` is kept in a cache of ``dtype``."""
    if storage is not None and storage.rounds(entry):
        return _Rounded(entry, dtype, storage)
    return _Plain(entry, dtype if entry.dtype is None else getattr(torch, entry.dtype))


class _Plain:
    lossy = False

    def __init__(self, entry: CacheEntry, dtype: torch.dtype) -> None:
        self.planes: Planes = {"": (entry.shape, dtype)}
        self._dtype = dtype

    def encode(self, values: Tensor) -> tuple[Tensor, ...]:
        return (values.to(self._dtype),)

    def decode(self, planes: tuple[Tensor, ...]) -> Tensor:
        return planes[0]


class _Rounded:
    """``least + step * code`` with codes ``0 .. 2^bits - 1``; what is read has the type of the cache.

    Steps and offsets are rounded to float16 before codes are chosen.  A value comes back off by at most half a step
    and what float16 rounds off the block's least and greatest value; its range, 65504, is that of the values too.
    """

    lossy = True

    def __init__(self, entry: CacheEntry, dtype: torch.dtype, storage: Storage) -> None:
        self._shape, self._values, self._dtype = entry.shape, entry.values, dtype
        self._bits, self._block, self._blocks = storage.bits, storage.block, storage.blocks(entry)
        self.planes: Planes = {
            ".codes": ((storage.code_bytes(entry),), torch.uint8),
            ".blocks": ((self._blocks, 2), torch.float16),
        }

    def encode(self, values: Tensor) -> tuple[Tensor, ...]:
        flat = values.flatten(2) if self._shape else values.unsqueeze(2)
        missing = self._blocks * self._block - self._values
        padded = torch.cat([flat, flat[..., -1:].expand(*flat.shape[:2], missing)], dim=2)
        wide = padded.to(torch.promote_types(padded.dtype, torch.float32))
        blocks = wide.view(*wide.shape[:2], self._blocks, self._block)
        top = 2**self._bits - 1
        least = blocks.amin(-1).half()
        step = ((blocks.amax(-1) - least) / top).half()
        spread = torch.where(step > 0, step, 1.0).to(blocks.dtype)  # a block of equal values is its offset
        codes = ((blocks - least[..., None]) / spread[..., None]).round().clamp(0, top).to(torch.uint8)
        codes = codes.flatten(2)[..., : self._values]
        return self._packed(codes), torch.stack([step, least], dim=-1)

    def decode(self, planes: tuple[Tensor, ...]) -> Tensor:
        codes, blocks = self._unpacked(planes[0]), planes[1].float()
        step, least = (part.repeat_interleave(self._block, -1)[..., : self._values] for part in blocks.unbind(-1))
        return torch.addcmul(least, step, codes).to(self._dtype).view(*codes.shape[:2], *self._shape)

    def _packed(self, codes: Tensor) -> Tensor:
        if self._bits == 8:
            return codes
        even, odd = codes[..., ::2], codes[..., 1::2]
        packed = even.clone()
        packed[..., : odd.shape[-1]] |= odd << 4
        return packed

    def _unpacked(self, packed: Tensor) -> Tensor:
        if self._bits == 8:
            return packed
        return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(2)[..., : self._values]
