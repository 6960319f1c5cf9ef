"""The config of multi-head latent attention (MLA; DeepSeek-V2, arXiv 2405.04434, section 2.1).

    c(s)          = W_down x(s)                                     rank values
    score_h(t, s) = scale * ( <q_h(t), W_k_up_g(h) c(s)> + <R q_rope_h(t), R k_rope(s)> )
    y_h(t)        = sum_s softmax_s(score_h(t, s)) W_v_up_g(h) c(s)        out = W_o concat_h y_h + b_o

Keys and values come from one latent; position lives in a rotary key that all heads share.  The cache holds the latent
and the turned rotary key: ``rank + rope_dim`` values a token, whatever the number of heads.

With ``latent_norm_eps`` the latent is RMS-normalized in front of the cache, as DeepSeek-V2 and V3 do.  ``layout:
servable`` is what transformers' ``DeepseekV3ForCausalLM`` and llama.cpp's ``deepseek2`` compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final, Literal

import attrs
from caramba_plugins_standard.gqa import HeadedAttention
from caramba_plugins_standard.rope import Rope

from caramba_core.components import CacheEntry, Constant, Cost, Given, Normal, Shape, Weight, component, option
from caramba_core.errors import InvalidValue

__all__ = ["MultiHeadLatentAttention"]

_OFFSETS: Final = ("q_bias", "k_bias", "o_bias")
_FREE: Final = "; with layout: free everything goes"


@component
class MultiHeadLatentAttention(HeadedAttention):
    """Attention whose keys and values are read from one cached latent, with a shared rotary key beside it."""

    builds: ClassVar[str] = "caramba_plugins_mla.module:MultiHeadLatentModule"
    takes_documents: ClassVar[bool] = True
    takes_steps: ClassVar[bool] = True

    n_kv_heads: int = option(
        default=attrs.Factory(lambda self: self.n_heads, takes_self=True),
        help="heads of keys and values that the latent expands to; divides n_heads, which it is if not given",
        minimum=1,
    )
    head_dim: int = option(
        help="width of a head's content queries, keys and values", unit="features", minimum=1, maximum=65536
    )
    rank: int = option(help="cached values of the latent", unit="values a token and layer", minimum=1)
    rope_dim: int = option(
        help="cached values of the rotary key that all heads share; even",
        unit="values a token and layer",
        minimum=0,
        maximum=65536,
    )
    rope: Rope | None = option(default=None, help="rotary embedding that the shared key takes its frequencies from")
    rope_width: int | None = option(
        default=None, help="width of a head that rope is of; head_dim if not given", minimum=2, maximum=65536
    )
    layout: Literal["free", "servable"] = option(
        default="free",
        help="servable holds to what DeepSeek-V3's attention can say: a normalized latent, no offsets, and rotary "
        "frequencies at equal steps, the same in all layers",
    )
    latent_norm_eps: float | None = option(
        default=None, help="RMS-normalize the latent, with this added to the mean square", above=0.0
    )
    q_bias: bool = option(default=False, help="add a learned offset to the queries")
    k_bias: bool = option(default=False, help="add a learned offset to the rotary key")
    o_bias: bool = option(default=False, help="add a learned offset to the output")
    init_std: float = option(default=0.02, help="standard deviation of the initial weights", above=0.0)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.rope_dim % 2:
            raise InvalidValue("rope_dim", f"{self.rope_dim} is odd", expected="2 values a rotary pair")
        if self.rope_dim and self.rope is None:
            raise InvalidValue(
                "rope", "rope_dim above 0 needs a rotary embedding", hint="rope: {theta: 10000.0}, or rope_dim: 0"
            )
        if self.rope_dim and self.turned_width % 2:
            field = "head_dim" if self.rope_width is None else "rope_width"
            raise InvalidValue(
                field, f"{self.turned_width} is odd", expected="an even width: its pairs set frequencies"
            )
        if self.rope_dim and self.rope is not None and self.rope.scaling == "dynamic":
            raise InvalidValue("rope", "dynamic scaling has no fixed frequencies to choose from")
        if self.k_bias and not self.rope_dim:
            raise InvalidValue("k_bias", "without a rotary key there is nothing to add it to", expected="false")
        if self.layout == "servable":
            self._require_servable()

    def _require_servable(self) -> None:
        """Raise :class:`InvalidValue` where DeepSeek-V3's attention has no words for it."""
        if self.latent_norm_eps is None:
            raise InvalidValue(
                "latent_norm_eps",
                f"DeepSeek's attention normalizes its latent{_FREE}",
                expected="a number, such as 1e-6",
            )
        for field in _OFFSETS:
            if getattr(self, field):
                raise InvalidValue(field, f"llama.cpp's deepseek2 has no such offset{_FREE}", expected="false")
        if not 2 <= self.rope_dim <= self.turned_width:
            raise InvalidValue(
                "rope_dim",
                f"{self.rope_dim}: each frequency of rope is there once, and there are {self.turned_width // 2}{_FREE}",
                expected=f"2 to {self.turned_width}",
            )

    @property
    def turned_width(self) -> int:
        """The width of a head that ``rope`` is of."""
        return self.head_dim if self.rope_width is None else self.rope_width

    @property
    def pairs(self) -> int:
        """Rotary pairs of the shared key."""
        return self.rope_dim // 2

    @property
    def fused_width(self) -> int:
        """Width of queries, keys and values in the fused call: flash kernels want one width, a multiple of 8."""
        return -(-(self.head_dim + self.rope_dim) // 8) * 8

    def weights(self, width: int) -> Mapping[str, Weight]:
        """``*_rope_*`` are of the rotary path; ``pairs`` are the frequencies of the shared key, by their place in
        ``rope``.

        Of ``q_proj`` ``[H d, D]`` and ``o_proj`` ``[D, H d]`` each head owns ``d`` rows or columns; ``k_up_proj`` and
        ``v_up_proj`` are ``[G d, rank]``.
        """
        queries, keys = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        init, zero = Normal(self.init_std), Constant(0.0)
        declared = {
            "q_proj": Weight(shape=(queries, width), init=init),
            "kv_down_proj": Weight(shape=(self.rank, width), init=init),
            "k_up_proj": Weight(shape=(keys, self.rank), init=init),
            "v_up_proj": Weight(shape=(keys, self.rank), init=init),
            "o_proj": Weight(shape=(width, queries), init=init),
        }
        if self.pairs:
            declared["q_rope_proj"] = Weight(shape=(self.n_heads * self.rope_dim, width), init=init)
            declared["k_rope_proj"] = Weight(shape=(self.rope_dim, width), init=init)
            declared["pairs"] = Weight(
                shape=(self.pairs,), init=Given(values=self._spread_pairs()), trainable=False, dtype="int64"
            )
        if self.latent_norm_eps is not None:
            declared["latent_norm"] = Weight(shape=(self.rank,), init=Constant(1.0))
        if self.q_bias:
            declared["q_bias"] = Weight(shape=(queries,), init=zero)
        if self.q_bias and self.pairs:
            declared["q_rope_bias"] = Weight(shape=(self.n_heads * self.rope_dim,), init=zero)
        if self.k_bias:
            declared["k_rope_bias"] = Weight(shape=(self.rope_dim,), init=zero)
        if self.o_bias:
            declared["o_bias"] = Weight(shape=(width,), init=zero)
        return declared

    def _spread_pairs(self) -> tuple[int, ...]:
        """Pairs for a model that starts at random: evenly over the spectrum, the fastest among them."""
        available = self.turned_width // 2
        if self.layout == "servable":
            return tuple(index * (available // self.pairs) for index in range(self.pairs))
        return tuple(index * available // self.pairs for index in range(self.pairs))

    def cache_spec(self, width: int) -> Mapping[str, CacheEntry]:
        """The ``latent`` and the turned rotary ``key``: ``rank + rope_dim`` values a token."""
        spec = {"latent": CacheEntry(shape=(self.rank,))}
        if self.pairs:
            spec["key"] = CacheEntry(shape=(self.rope_dim,))
        return spec

    def cost(self, width: int, shape: Shape) -> Cost:
        """Training and prefill count the fused call at its padded width, decoding the absorbed products.

        Kept for the backward pass: the input, the latent, queries and keys, values and the mixture at the fused width,
        and one log-sum-exp a head and token.
        """
        rows, decoding = shape.rows, shape.context > shape.tokens
        queries, keys = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        inputs = self.n_heads * self.rope_dim + self.rope_dim + queries + self.rank
        total = Cost.product(rows, width, inputs) + Cost.product(rows, queries, width)
        total += Cost.product(rows, self.rank, 2 * (queries if decoding else keys))
        if decoding:
            per_pair = 2 * self.n_heads * (2 * self.rank + self.rope_dim)
        else:
            per_pair = 2 * self.n_heads * 2 * self.fused_width
        kept = width + self.rank + 2 * (self.n_heads + self.n_kv_heads) * self.fused_width + self.n_heads
        if self.latent_norm_eps is not None:
            kept += self.rank + 1
        return total + Cost(
            operations=rows * shape.context * per_pair,
            causal_operations=shape.causal_pairs() * per_pair,
            saved=rows * kept,
        )
