"""Multi-head attention with shared keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import attrs

from caramba_core.component import CacheEntry, Cost, Shape, component, option
from caramba_core.errors import InvalidValue
from caramba_plugins_standard.grouped import GroupedAttention

__all__ = ["GroupedQueryAttention", "MultiHeadAttention"]


@component
class GroupedQueryAttention(GroupedAttention):
    """Causal softmax attention in which ``n_heads / n_kv_heads`` query heads share keys and values (arXiv 2305.13245).

    Keys are cached after rotation.
    """

    builds: ClassVar[str] = "caramba_plugins_standard.gqa_module:GroupedQueryAttentionModule"

    window: int | None = option(
        default=None, help="tokens that a token sees, itself included; all if not given", unit="tokens", minimum=1
    )

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.rope is not None and self.rope.scaling == "dynamic" and self.head_dim < 4:
            raise InvalidValue("head_dim", f"{self.head_dim} is below 4, the least that dynamic scaling can take")

    @property
    def takes_starts(self) -> bool:
        """Not with dynamic scaling, whose frequencies follow the longest sequence of a batch."""
        return self.rope is None or self.rope.scaling != "dynamic"

    def cost(self, width: int, shape: Shape) -> Cost:
        """Four projections, scores and mixing."""
        return self.softmax_cost(width, shape, self.window)

    def cache_spec(self, width: int) -> Mapping[str, CacheEntry]:
        """Rotated ``key`` and ``value``, ``[G, d]`` a token each."""
        entry = CacheEntry(shape=(self.n_kv_heads, self.head_dim), window=self.window)
        return {"key": entry, "value": entry}


@component
class MultiHeadAttention(GroupedQueryAttention):
    """Attention in which every query head has keys and values of its own (arXiv 1706.03762)."""

    n_kv_heads: int = option(
        default=attrs.Factory(lambda self: self.n_heads, takes_self=True), help="always n_heads", minimum=1
    )

    def __attrs_post_init__(self) -> None:
        if self.n_kv_heads != self.n_heads:
            raise InvalidValue("n_kv_heads", f"{self.n_kv_heads} is not n_heads {self.n_heads}", hint="use type: gqa")
        super().__attrs_post_init__()
