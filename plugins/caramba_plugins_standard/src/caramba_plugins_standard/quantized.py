"""Caches as they were computed, and in 8 or 4 bits, quantized block by block (configs; light)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from caramba_core.components import CacheEntry, Storage, component, option

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Blocks", "Full", "Int4", "Int8"]


@component
class Full(Storage):
    """Keys and values as they were computed."""

    def quantizes(self, entry: CacheEntry) -> bool:
        """Nothing is."""
        return False


@component
class Blocks(Storage):
    """``bits`` per value, and a step and a least value in float16 for every ``block`` values of a token.

    The blocks divide a token's values of one entry in their order; the last one may be shorter.  Each block spans its
    least to its greatest value, as in arXiv 2303.06865.  Keys are quantized per token as values are, not per channel
    (arXiv 2402.02750), so that no tokens wait in full precision and tokens can be taken back.
    """

    bits: ClassVar[int]

    block: int = option(default=32, help="values that share a step and an offset", unit="values", minimum=1)

    def planes(self, values: int) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """Codes, of which two share a byte in 4 bits, and step and least value of each block."""
        codes, blocks = -(-values * self.bits // 8), -(-values // self.block)
        return {".codes": ((codes,), "uint8"), ".blocks": ((blocks, 2), "float16")}

    def encode(self, values: Tensor) -> tuple[Tensor, ...]:
        """Codes ``[B, T, bytes]`` and blocks ``[B, T, n, 2]``."""
        from caramba_plugins_standard.quantization import quantize

        return quantize(values, self.bits, self.block)

    def decode(self, planes: tuple[Tensor, ...], values: int) -> Tensor:
        """In float32."""
        from caramba_plugins_standard.quantization import dequantize

        codes, blocks = planes
        return dequantize(codes, blocks, values, self.bits, self.block)


@component
class Int8(Blocks):
    """Keys and values in 8 bits."""

    bits: ClassVar[int] = 8


@component
class Int4(Blocks):
    """Keys and values in 4 bits."""

    bits: ClassVar[int] = 4
