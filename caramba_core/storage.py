"""How per-token entries of a cache are quantized: in few bits, block by block.  Light: plans use it."""

from __future__ import annotations

from typing import Final, Literal

import attrs

from caramba_core.component import CacheEntry

__all__ = ["Storage"]

_BITS: Final[dict[str, Literal[4, 8]]] = {"int8": 8, "int4": 4}

_SCALE_BYTES: Final = 4
"""A block's step and its least value, both in float16."""


@attrs.frozen
class Storage:
    """``bits`` per value, and a step and a least value in float16 for every ``block`` values of a token.

    The blocks divide a token's values of one entry in their order; the last one may be shorter.  Each block spans its
    least to its greatest value, as in arXiv 2303.06865.  Keys are quantized per token as values are, not per channel
    (arXiv 2402.02750), so that no tokens wait in full precision and tokens can be taken back.  States, and entries that
    pin a type, are not quantized.
    """

    bits: Literal[4, 8] = attrs.field(validator=attrs.validators.in_((4, 8)))
    block: int = attrs.field(default=32, validator=attrs.validators.ge(1))

    @classmethod
    def named(cls, name: str, block: int = 32) -> Storage | None:
        """The storage called ``int8`` or ``int4``; ``None`` for ``full``, a cache that is not quantized."""
        return None if name == "full" else cls(_BITS[name], block)

    def quantizes(self, entry: CacheEntry) -> bool:
        """Whether this entry is quantized."""
        return entry.per_token and entry.dtype is None

    def bytes(self, entry: CacheEntry) -> int:
        """Bytes per token of an entry that is quantized."""
        return self.code_bytes(entry) + self.blocks(entry) * _SCALE_BYTES

    def code_bytes(self, entry: CacheEntry) -> int:
        """Bytes of the codes: in 4 bits, two values share one."""
        return -(-entry.values * self.bits // 8)

    def blocks(self, entry: CacheEntry) -> int:
        """Blocks of a token's values."""
        return -(-entry.values // self.block)
