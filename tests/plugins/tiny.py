"""A small layer and a small attention: real components in every respect, and as small as one can be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from caramba_core.components import Attention, CacheEntry, Cost, Layer, Shape, Weight, component, option
from caramba_core.errors import InvalidValue

__all__ = ["TinyAttention", "TinyLinear"]

_MODULES = "tests.plugins.tiny_modules"


@component
class TinyLinear(Layer):
    """``x W^T``, to another width if asked for."""

    role: ClassVar[str] = "linear"
    builds: ClassVar[str] = f"{_MODULES}:TinyLinearModule"

    width_out: int | None = option(default=None, help="width of the output; the input's if not given", minimum=1)

    def output_width(self, width: int) -> int:
        """``width_out``, or the input's."""
        return self.width_out or width

    def weights(self, width: int) -> Mapping[str, Weight]:
        """``weight`` ``[D', D]``."""
        return {"weight": Weight(shape=(self.output_width(width), width))}

    def cost(self, width: int, shape: Shape) -> Cost:
        """One product; its input stays for the backward pass."""
        return Cost.product(shape.rows, width, self.output_width(width), saved=shape.rows * width)


@component
class TinyAttention(Attention):
    """Causal softmax attention with one head for each ``width / n_heads`` features, without positions."""

    builds: ClassVar[str] = f"{_MODULES}:TinyAttentionModule"

    n_heads: int = option(default=1, help="heads", minimum=1)

    def check(self, width: int) -> None:
        """The heads divide the width."""
        if width % self.n_heads:
            raise InvalidValue("n_heads", f"{self.n_heads} does not divide the width {width}")

    def weights(self, width: int) -> Mapping[str, Weight]:
        """Four square projections."""
        return {name: Weight(shape=(width, width)) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}

    def cost(self, width: int, shape: Shape) -> Cost:
        """Four projections, scores and mixing."""
        return Cost.product(shape.rows, width, 4 * width, saved=shape.rows * (5 * width + self.n_heads)) + Cost(
            operations=4 * width * shape.rows * shape.context,
            causal_operations=4 * width * shape.causal_pairs(),
        )

    def cache_spec(self, width: int) -> Mapping[str, CacheEntry]:
        """Keys and values, ``[H, d]`` a token each."""
        entry = CacheEntry(shape=(self.n_heads, width // self.n_heads))
        return {"key": entry, "value": entry}
