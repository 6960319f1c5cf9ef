"""The numbers of a plan, and how they are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from caramba_core.component import CacheEntry, Weight
from caramba_core.storage import Storage

__all__ = ["ITEM_BYTES", "Figures", "bytes_in_words", "cached_bytes", "count_in_words", "weight_bytes"]

ITEM_BYTES: Final[Mapping[str, int]] = {
    "float64": 8,
    "int64": 8,
    "float32": 4,
    "int32": 4,
    "bfloat16": 2,
    "float16": 2,
    "int16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
"""Bytes of a value of each type, by torch's names."""


@attrs.frozen(kw_only=True)
class Figures:
    """What a node, or all nodes below one, hold and take.

    ``parameters`` and ``buffers`` are values, ``weight_bytes`` the bytes of both.  ``operations``,
    ``causal_operations`` and ``saved`` (values kept for the backward pass) are of one sequence as long as the plan's
    context; ``decoding_operations`` of one more token behind so many.  ``cache_values`` and ``cache_bytes`` are kept
    for a token, ``state_bytes`` once a sequence, ``context_bytes`` for a whole context, both included.
    """

    parameters: int = 0
    buffers: int = 0
    weight_bytes: int = 0
    operations: int = 0
    causal_operations: int = 0
    decoding_operations: int = 0
    saved: int = 0
    cache_values: int = 0
    cache_bytes: int = 0
    state_bytes: int = 0
    context_bytes: int = 0

    def __add__(self, other: Figures) -> Figures:
        return Figures(
            parameters=self.parameters + other.parameters,
            buffers=self.buffers + other.buffers,
            weight_bytes=self.weight_bytes + other.weight_bytes,
            operations=self.operations + other.operations,
            causal_operations=self.causal_operations + other.causal_operations,
            decoding_operations=self.decoding_operations + other.decoding_operations,
            saved=self.saved + other.saved,
            cache_values=self.cache_values + other.cache_values,
            cache_bytes=self.cache_bytes + other.cache_bytes,
            state_bytes=self.state_bytes + other.state_bytes,
            context_bytes=self.context_bytes + other.context_bytes,
        )


def weight_bytes(weight: Weight, dtype: str) -> int:
    """Bytes of a declared tensor in a model of this type."""
    return weight.numel * ITEM_BYTES[weight.dtype or dtype]


def cached_bytes(spec: Mapping[str, CacheEntry], dtype: str, tokens: int, storage: Storage | None = None) -> int:
    """Bytes that one sequence of ``tokens`` tokens keeps; an entry with a window keeps so many tokens at most."""
    total = 0
    for entry in spec.values():
        held = 1 if not entry.per_token else tokens if entry.window is None else min(tokens, entry.window)
        if storage is not None and storage.rounds(entry):
            total += held * storage.bytes(entry)
        else:
            total += held * entry.values * ITEM_BYTES[entry.dtype or dtype]
    return total


def count_in_words(count: float) -> str:
    """Three digits and a unit: ``1.24 G``, ``134 M``, ``576``."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if count >= size:
            scaled = count / min(size, 1e3 if unit == "k" else size)
            return f"{scaled:.3g} {unit}" if scaled < 999.5 else f"{scaled:.0f} {unit}"
    return f"{count:,.0f}"


def bytes_in_words(count: float) -> str:
    """Bytes in binary units: ``2.30 GiB``, ``512 KiB``, ``96 B``."""
    for size, unit in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= size:
            scaled = count / size
            return f"{scaled:.3g} {unit}" if scaled < 999.5 else f"{scaled:.0f} {unit}"
    return f"{count:.0f} B"
