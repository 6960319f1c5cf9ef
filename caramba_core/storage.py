"""Storages: how a cache holds keys and values in fewer bytes than they were computed in (configs; light)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Final

from caramba_core.components import CacheEntry, Component, component

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ITEM_BYTES", "Storage"]

ITEM_BYTES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("float64", "int64"), 8),
    **dict.fromkeys(("float32", "int32"), 4),
    **dict.fromkeys(("bfloat16", "float16", "int16"), 2),
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "int8", "uint8", "bool"), 1),
}
"""Bytes per value of each type, by torch's names."""


@component
class Storage(Component):
    """How a cache stores its per-token entries, in tensors that each hold a part of every token.

    ``builds`` is not used: the methods import torch themselves.  Every setting has a default, so that plans can say
    what each installed storage takes.  States, and entries that pin a type, are stored as they are.
    """

    kind: ClassVar[str] = "storage"
    builds: ClassVar[str] = ""

    def planes(self, values: int) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """The tensors for an entry of ``values`` values, by suffix of its name: shape per token, torch's type."""
        raise NotImplementedError(f"{type(self).__name__} does not define planes")

    def encode(self, values: Tensor) -> tuple[Tensor, ...]:
        """What each tensor holds of tokens ``[B, T, values]``: ``[B, T, *shape]`` in its type."""
        raise NotImplementedError(f"{type(self).__name__} does not define encode")

    def decode(self, planes: tuple[Tensor, ...], values: int) -> Tensor:
        """What reading these tokens gives: ``[B, T, values]``."""
        raise NotImplementedError(f"{type(self).__name__} does not define decode")

    def quantizes(self, entry: CacheEntry) -> bool:
        """Whether this entry is stored this way."""
        return entry.per_token and entry.dtype is None

    def bytes(self, entry: CacheEntry) -> int:
        """Bytes per token of an entry that is."""
        return sum(math.prod(shape) * ITEM_BYTES[dtype] for shape, dtype in self.planes(entry.values).values())
