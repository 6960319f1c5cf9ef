"""Attention with heads in groups that share keys and values: bases for others, and softmax attention itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import attrs

from caramba_core.components import Attention, CacheEntry, Constant, Cost, Normal, Shape, Weight, component, option
from caramba_core.errors import InvalidValue
from caramba_plugins_standard.rope import Rope

__all__ = [
    "GroupedAttention",
    "GroupedQueryAttention",
    "HeadedAttention",
    "MultiHeadAttention",
    "NormedAttention",
]


@component
class HeadedAttention(Attention):
    """Base of attentions with ``n_heads`` query heads, of which ``n_heads / n_kv_heads`` share a key/value head."""

    inherited: ClassVar[tuple[str, ...]] = ("name", "n_heads", "n_kv_heads", "head_dim", "rope", "scale")

    n_heads: int = option(help="query heads", minimum=1)
    n_kv_heads: int = option(help="key/value heads; divides n_heads", minimum=1)
    head_dim: int = option(help="width of a head", unit="features", minimum=1, maximum=65536)
    rope: Rope | None = option(default=None, help="rotary positions; none if not given")
    scale: float | None = option(default=None, help="multiplier of scores; head_dim ** -0.5 if not given", above=0.0)

    def __attrs_post_init__(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise InvalidValue("n_kv_heads", f"{self.n_kv_heads} does not divide n_heads ({self.n_heads})")
        if self.rope is not None:
            self.rope.require_pairs(self.turned_width)

    @property
    def turned_width(self) -> int:
        """The width of a head that ``rope`` is of."""
        return self.head_dim

    @property
    def multiplier(self) -> float:
        """What scores are multiplied by."""
        return self.head_dim**-0.5 if self.scale is None else self.scale


@component
class NormedAttention(HeadedAttention):
    """Base of attentions that may normalize queries and keys before they are rotated."""

    inherited: ClassVar[tuple[str, ...]] = (
        *HeadedAttention.inherited,
        *("qk_norm_eps", "qk_norm_span", "qk_norm_offset"),
    )

    qk_norm_eps: float | None = option(
        default=None, help="RMS-normalize queries and keys over a head, with this added to the mean square", above=0.0
    )
    qk_norm_span: Literal["head", "all"] = option(
        default="head", help="what one norm of queries and one of keys spans: a head, or all heads together"
    )
    qk_norm_offset: float = option(default=0.0, help="added to the weights of the norms of queries and keys")

    def norms(self) -> dict[str, Weight]:
        """``q_norm`` and ``k_norm``, ``[d]`` or ``[H d]`` and ``[G d]``; none where nothing is normalized."""
        if self.qk_norm_eps is None:
            return {}
        one, whole = Constant(1.0 - self.qk_norm_offset), self.qk_norm_span == "all"
        return {
            name: Weight(shape=(heads * self.head_dim if whole else self.head_dim,), init=one)
            for name, heads in (("q_norm", self.n_heads), ("k_norm", self.n_kv_heads))
        }

    def kept_by_norms(self) -> int:
        """Values per token that stay for the norms' backward pass."""
        if self.qk_norm_eps is None:
            return 0
        heads = self.n_heads + self.n_kv_heads
        return heads * self.head_dim + (2 if self.qk_norm_span == "all" else heads)


@component
class GroupedAttention(NormedAttention):
    """Base of attentions whose queries, keys and values are plain projections, as in Hugging Face checkpoints.

    Query head ``h`` reads key/value head ``h // (n_heads / n_kv_heads)``.
    """

    qkv_bias: bool = option(default=False, help="add learned offsets to queries, keys and values")
    o_bias: bool = option(default=False, help="add a learned offset to the output")
    init_std: float = option(default=0.02, help="standard deviation of the initial weights", above=0.0)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.rope is not None and self.head_dim % 2:
            raise InvalidValue("head_dim", f"{self.head_dim} is odd", expected="an even width: rope turns pairs")
        if self.rope is not None and self.rope.rotated is not None and self.rope.rotated > self.head_dim:
            raise InvalidValue("rope", f"{self.rope.rotated} values of a head turn, of {self.head_dim}")

    def weights(self, width: int) -> Mapping[str, Weight]:
        """``q_proj`` ``[H d, D]``, ``k_proj``, ``v_proj`` ``[G d, D]``, ``o_proj`` ``[D, H d]``, biases, norms."""
        queries, keys = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        init, zero = Normal(self.init_std), Constant(0.0)
        weights = {
            "q_proj": Weight(shape=(queries, width), init=init),
            "k_proj": Weight(shape=(keys, width), init=init),
            "v_proj": Weight(shape=(keys, width), init=init),
            "o_proj": Weight(shape=(width, queries), init=init),
        }
        if self.qkv_bias:
            weights["q_bias"] = Weight(shape=(queries,), init=zero)
            weights["k_bias"] = Weight(shape=(keys,), init=zero)
            weights["v_bias"] = Weight(shape=(keys,), init=zero)
        if self.o_bias:
            weights["o_bias"] = Weight(shape=(width,), init=zero)
        return {**weights, **self.norms()}

    def softmax_cost(self, width: int, shape: Shape, window: int | None, *, fused: int = 1) -> Cost:
        """Four projections, and scores and mixing of heads ``fused`` times as wide, for tokens that see ``window``.

        Kept for the backward pass: the input, rotated queries and keys, values, the mixed values and one log-sum-exp a
        head and token.
        """
        queries, keys = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        context = shape.context if window is None else min(shape.context, window - 1 + shape.tokens)
        kept = width + fused * (2 * queries + 2 * keys) + self.n_heads + self.kept_by_norms()
        return Cost.product(shape.rows, width, 2 * queries + 2 * keys) + Cost(
            operations=4 * queries * fused * shape.rows * context,
            causal_operations=4 * queries * fused * shape.causal_pairs(window),
            saved=shape.rows * kept,
        )


@component
class GroupedQueryAttention(GroupedAttention):
    """Causal softmax attention in which ``n_heads / n_kv_heads`` query heads share keys and values (arXiv 2305.13245).

    Keys are cached after rotation.
    """

    builds: ClassVar[str] = "caramba_plugins_standard.gqa_module:GroupedQueryAttentionModule"
    takes_steps: ClassVar[bool] = True
    inherited: ClassVar[tuple[str, ...]] = (*NormedAttention.inherited, "window")

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

    @property
    def takes_documents(self) -> bool:
        """As :attr:`takes_starts`."""
        return self.takes_starts

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
