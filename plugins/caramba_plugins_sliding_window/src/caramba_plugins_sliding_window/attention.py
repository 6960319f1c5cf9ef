"""The config of sliding-window attention with sink tokens.

Token ``t`` sees the first ``sinks`` tokens of the text and the last ``window``, itself included.  Heads park attention
that they have no use for on the first tokens; a window without them falls apart as soon as it slides (StreamingLLM,
arXiv 2309.17453).  The cache holds ``sinks + window`` tokens however long the text grows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from caramba_plugins_standard.rope import Rope

from caramba_core.component import Attention, CacheEntry, Constant, Cost, Normal, Shape, Weight, component, option
from caramba_core.errors import InvalidValue

__all__ = ["SlidingWindowAttention"]


@component
class SlidingWindowAttention(Attention):
    """Grouped-query softmax attention to the first ``sinks`` tokens and the last ``window``.

    ``sink_positions`` says how far away the sinks seem once they lie outside the window.  ``text``: as far as they are;
    one fused call of the plain width.  ``cache``: never farther than the cache is long, as in StreamingLLM, so that the
    distance stays one that training has seen, in a text without end; queries and keys of the fused call are twice as
    wide for sequences longer than the cache.
    """

    builds: ClassVar[str] = "caramba_plugins_sliding_window.module:SlidingWindowModule"
    inherited: ClassVar[tuple[str, ...]] = ("name", "n_heads", "n_kv_heads", "head_dim", "rope", "scale")

    n_heads: int = option(help="query heads", minimum=1)
    n_kv_heads: int = option(help="key/value heads; divides n_heads", minimum=1)
    head_dim: int = option(help="width of a head", unit="features", minimum=1)
    window: int = option(help="last tokens that a token sees, itself included", unit="tokens", minimum=1)
    sinks: int = option(default=4, help="first tokens of the text that every token sees", unit="tokens", minimum=0)
    rope: Rope | None = option(default=None, help="rotary positions; none if not given")
    sink_positions: Literal["text", "cache"] = option(
        default="text",
        help="distance of the sinks: true, or at most the length of the cache",
        choices=("text", "cache"),
    )
    scale: float | None = option(default=None, help="multiplier of scores; head_dim ** -0.5 if not given", above=0.0)
    qkv_bias: bool = option(default=False, help="add learned offsets to queries, keys and values")
    o_bias: bool = option(default=False, help="add a learned offset to the output")
    qk_norm_eps: float | None = option(
        default=None, help="RMS-normalize queries and keys over a head, with this added to the mean square", above=0.0
    )
    init_std: float = option(default=0.02, help="standard deviation of the initial weights", above=0.0)

    def __attrs_post_init__(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise InvalidValue("n_kv_heads", f"{self.n_kv_heads} does not divide n_heads ({self.n_heads})")
        if self.rope is not None and self.head_dim % 2:
            raise InvalidValue("head_dim", f"{self.head_dim} is odd", expected="an even width: rope turns pairs")
        if self.rope is not None and self.rope.scaling == "dynamic":
            raise InvalidValue(
                "rope", "dynamic scaling turns cached keys anew when the text grows, which a bounded cache cannot do"
            )

    @property
    def held(self) -> int:
        """Tokens in a full cache: as many as one token sees."""
        return self.sinks + self.window

    @property
    def multiplier(self) -> float:
        """What scores are multiplied by."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def near_sinks(self) -> bool:
        """Whether queries turn differently for the sinks."""
        return self.sink_positions == "cache" and self.sinks > 0 and self.rope is not None

    def weights(self, width: int) -> Mapping[str, Weight]:
        """``q_proj`` ``[H d, D]``, ``k_proj``, ``v_proj`` ``[G d, D]``, ``o_proj`` ``[D, H d]``, biases, norms."""
        queries, keys = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        init, zero, one = Normal(self.init_std), Constant(0.0), Constant(1.0)
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
        if self.qk_norm_eps is not None:
            weights["q_norm"] = Weight(shape=(self.head_dim,), init=one)
            weights["k_norm"] = Weight(shape=(self.head_dim,), init=one)
        return weights

    def cost(self, width: int, shape: Shape) -> Cost:
        """Four projections, scores and mixing; sequences longer than the cache are counted with their mask in full.

        Kept for the backward pass: the input, rotated queries and keys, values, the mixed values and one log-sum-exp a
        head and token, all as wide as the fused call.
        """
        queries, keys = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        wide = 2 if self.near_sinks and shape.tokens == shape.context > self.held else 1
        context = shape.context
        if shape.context > shape.tokens:
            context = min(context, self.held - 1 + shape.tokens)
        kept = width + wide * (2 * queries + 2 * keys) + self.n_heads
        if self.qk_norm_eps is not None:
            kept += queries + keys + self.n_heads + self.n_kv_heads
        return Cost.product(shape.rows, width, 2 * queries + 2 * keys) + Cost(
            operations=4 * queries * wide * shape.rows * context,
            causal_operations=4 * queries * wide * shape.causal_pairs(self.held),
            saved=shape.rows * kept,
        )

    def cache_spec(self, width: int) -> Mapping[str, CacheEntry]:
        """Rotated ``key`` and ``value``, ``[G, d]`` a token each, for ``sinks + window`` tokens."""
        entry = CacheEntry(shape=(self.n_kv_heads, self.head_dim), window=self.held, sinks=self.sinks)
        return {"key": entry, "value": entry}
