"""How decoding keeps the entries that attentions declare a token: rounded to few bits, in blocks (light)."""

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
    """``bits`` a value, and a step and an offset in float16 for every ``block`` values of a token.

    The blocks divide a token's values of one entry in their order; the last one may be shorter.  Each block spans its
    least to its greatest value, as in arXiv 2303.06865; keys are rounded a token at a time as values are (not a channel
    at a time, arXiv 2402.02750), so that nothing is kept in full meanwhile and tokens can be taken back.  States, and
    entries that pin a type, are kept as they are.
    """

    bits: Literal[4, 8] = attrs.field(validator=attrs.validators.in_((4, 8)))
    block: int = attrs.field(default=32, validator=attrs.validators.ge(1))

    @classmethod
    def named(cls, name: str, block: int = 32) -> Storage | None:
        """The storage of ``int8`` or ``int4``; none for ``full``, which keeps what was computed."""
        return None if name == "full" else cls(_BITS[name], block)

    def rounds(self, entry: CacheEntry) -> bool:
        """Whether this entry is kept in this way."""
        return entry.per_token and entry.dtype is None

    def bytes(self, entry: CacheEntry) -> int:
        """Bytes of one token of an entry that is kept in this way."""
        return self.code_bytes(entry) + self.blocks(entry) * _SCALE_BYTES

    def code_bytes(self, entry: CacheEntry) -> int:
        """Bytes of the rounded values: two values share one in 4 bits."""
        return -(-entry.values * self.bits // 8)

    def blocks(self, entry: CacheEntry) -> int:
        """Blocks that the values of a token make."""
        return -(-entry.values // self.block)
