"""The config of linear attention with exact neighbours.

    near_h(t) = the first ``sinks`` tokens and the last ``window``
    far_h(t)  = all others before t
    y_h(t)    = (sum_near exp(scale <R q, R k_s>) v_s + sum_far <exp(A_h q), softmax(B_g k_s)> v_s)
                / (the same with v = 1)

Far tokens are read through a positive feature map, so that their sum is a state of constant size: each of the
``features`` slots of a key/value head adds up the values of the tokens that its key map sorts into it, and how many
these are; a query weighs slots as softmax attention weighs tokens.  Near tokens are read exactly, under the same
denominator (LoLCATs, arXiv 2410.10254, section 3.3; the maps are learned as in Hedgehog, arXiv 2402.04347, and the
slots are those of ABC, arXiv 2110.02488).  ``window: 0, sinks: 0`` is linear attention alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from caramba_plugins_standard.gqa import GroupedAttention

from caramba_core.components import CacheEntry, Constant, Cost, Normal, Shape, Weight, component, option
from caramba_core.errors import InvalidValue

__all__ = ["CHUNK", "LinearAttention"]

CHUNK: Final = 64
"""Tokens that the parallel form takes at once; results do not depend on it."""


@component
class LinearAttention(GroupedAttention):
    """Attention whose far tokens are summed into a state of constant size, and whose near ones are read exactly.

    Rotary positions are for near tokens alone: the state knows no distances.  It is kept in float32.
    """

    builds: ClassVar[str] = "caramba_plugins_linear.module:LinearAttentionModule"
    takes_steps: ClassVar[bool] = True

    features: int = option(help="slots of the state, a key/value head", minimum=1)
    window: int = option(
        default=64, help="last tokens that a token reads exactly, itself included", unit="tokens", minimum=0
    )
    sinks: int = option(
        default=4, help="first tokens of the text that every token reads exactly", unit="tokens", minimum=0
    )

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.rope is not None and self.rope.scaling == "dynamic":
            raise InvalidValue(
                "rope", "dynamic scaling turns cached keys anew when the text grows, which a bounded cache cannot do"
            )

    @property
    def held(self) -> int:
        """Tokens in a full cache: those that one token reads exactly."""
        return self.sinks + self.window

    def weights(self, width: int) -> Mapping[str, Weight]:
        """The projections; ``q_map`` ``[H, f, d]`` and ``k_map`` ``[G, f, d]``, which give features; their offsets."""
        zero = Constant(0.0)
        spread = Normal(self.head_dim**-0.5)  # slots must differ from the start
        return {
            **super().weights(width),
            "q_map": Weight(shape=(self.n_heads, self.features, self.head_dim), init=spread),
            "k_map": Weight(shape=(self.n_kv_heads, self.features, self.head_dim), init=spread),
            "q_map_bias": Weight(shape=(self.n_heads, self.features), init=zero),
            "k_map_bias": Weight(shape=(self.n_kv_heads, self.features), init=zero),
        }

    def cost(self, width: int, shape: Shape) -> Cost:
        """Projections, maps, exact scores and mixing, and the chunks of the linear part, padded tokens included.

        Kept for the backward pass: the input, queries, keys and values before and after rotation, features in both
        forms, exact scores and probabilities, and the mixture.
        """
        heads, groups, width_h, features = self.n_heads, self.n_kv_heads, self.head_dim, self.features
        rows, extended = shape.rows, width_h + 1  # a one stands beside each value, for the denominator
        dense = Cost.product(rows, width, 2 * (heads + groups) * width_h)
        dense += Cost.product(rows, width_h, (heads + groups) * features)
        chunk = min(CHUNK, shape.tokens)
        padded = shape.batch * -(-shape.tokens // chunk) * chunk
        far = 2 * heads * padded * chunk * (features + extended) + 2 * (heads + groups) * padded * features * extended
        near, seen = self._near(shape)
        exact = 2 * heads * (width_h + extended) * near
        causal = 2 * heads * (width_h + extended) * (shape.causal_pairs(self.held) if self.held else 0)
        kept = width + 3 * heads * width_h + 2 * groups * (width_h + extended) + heads * extended
        kept += 2 * (heads + groups) * features + 2 * heads * seen
        if self.qk_norm_eps is not None:
            kept += (heads + groups) * extended
        return dense + Cost(operations=far + exact, causal_operations=min(causal, exact) + far, saved=rows * kept)

    def _near(self, shape: Shape) -> tuple[int, int]:
        """Pairs that the exact part computes, and keys a token: see :mod:`caramba_plugins_linear.near`."""
        if not self.window:
            seen = min(shape.context, self.sinks)
            return shape.rows * seen, seen
        if shape.context > shape.tokens:
            seen = min(shape.context, self.held - 1 + shape.tokens)
            return shape.rows * seen, seen
        if not banded(shape.tokens, self.window):
            return shape.rows * shape.tokens, shape.tokens
        block = band(self.window)
        padded = shape.batch * -(-shape.tokens // block) * block
        return padded * 2 * block + shape.rows * self.sinks, 2 * block + self.sinks

    def cache_spec(self, width: int) -> Mapping[str, CacheEntry]:
        """Near ``key`` (turned) and ``value``, ``[G, d]`` a token; ``state`` ``[G, f, d + 1]`` once a sequence."""
        spec = {
            "state": CacheEntry(
                shape=(self.n_kv_heads, self.features, self.head_dim + 1), per_token=False, dtype="float32"
            )
        }
        if self.held:
            entry = CacheEntry(shape=(self.n_kv_heads, self.head_dim), window=self.held, sinks=self.sinks)
            spec.update(key=entry, value=entry)
        return spec


def band(window: int) -> int:
    """Tokens of a block of the banded form: each sees its own block and the one before."""
    return max(window, 32)


def banded(tokens: int, window: int) -> bool:
    """Whether a pass over so many tokens computes blocks near the diagonal alone."""
    return tokens > 2 * band(window)
