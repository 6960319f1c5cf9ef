"""The numbers of a plan: what nodes hold and take, and bytes from shapes and types."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from caramba_core.component import CacheEntry, Weight
from caramba_core.storage import ITEM_BYTES, Storage

__all__ = ["Figures", "cached_bytes", "weight_bytes"]


@attrs.frozen(kw_only=True)
class Figures:
    """What a node, or a node with everything below it, holds and takes.

    ``operations``, ``causal_operations`` and ``saved`` (values kept for the backward pass) are those of a pass over one
    sequence of the plan's context length; ``decoding_operations`` those of one more token with that many cached.
    ``cache_values`` and ``cache_bytes`` are cached per token, ``state_bytes`` once per sequence; ``context_bytes`` is
    the whole cache of a sequence at that context.
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
        return Figures(**{name: getattr(self, name) + getattr(other, name) for name in attrs.fields_dict(Figures)})

    def applied(self, times: int) -> Figures:
        """The figures of a node that one pass applies ``times`` times: the same weights, a cache each."""
        weights = {"parameters", "buffers", "weight_bytes"}
        scaled = {name: getattr(self, name) * times for name in attrs.fields_dict(Figures) if name not in weights}
        return attrs.evolve(self, **scaled)


def weight_bytes(weight: Weight, dtype: str) -> int:
    """Bytes of a declared tensor in a model of this type."""
    return weight.numel * ITEM_BYTES[weight.dtype or dtype]


def cached_bytes(spec: Mapping[str, CacheEntry], dtype: str, tokens: int, storage: Storage | None = None) -> int:
    """Bytes that an attention caches of one sequence of ``tokens`` tokens; ``storage`` quantizes the cache."""
    total = 0
    for entry in spec.values():
        held = 1 if not entry.per_token else tokens if entry.window is None else min(tokens, entry.window)
        if storage is not None and storage.quantizes(entry):
            total += held * storage.bytes(entry)
        else:
            total += held * entry.values * ITEM_BYTES[entry.dtype or dtype]
    return total
