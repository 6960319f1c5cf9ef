"""Attention with linear distance biases: its settings."""

from collections.abc import Mapping
from typing import ClassVar

from caramba_core.components import Attention, CacheEntry, Cost, Shape, Weight, component, option
from caramba_core.errors import InvalidValue


@component
class AlibiAttention(Attention):
    """Causal attention whose scores fall with distance, more steeply in some heads than in others."""

    builds: ClassVar[str] = "caramba_plugin_example.module:AlibiModule"
    inherited: ClassVar[tuple[str, ...]] = ("name", "n_heads")

    n_heads: int = option(help="heads; they divide the width", minimum=1)

    def check(self, width: int) -> None:
        """The heads divide the width."""
        if width % self.n_heads:
            raise InvalidValue("n_heads", f"{self.n_heads} does not divide the width {width}")

    def weights(self, width: int) -> Mapping[str, Weight]:
        """Four square projections."""
        return {name: Weight(shape=(width, width)) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}

    def cost(self, width: int, shape: Shape) -> Cost:
        """The projections, then scores and mixing for every pair of tokens."""
        operations, causal = 4 * width * shape.rows * shape.context, 4 * width * shape.causal_pairs()
        projections = Cost.product(shape.rows, width, 4 * width, saved=5 * width * shape.rows)
        return projections + Cost(operations=operations, causal_operations=causal)

    def cache_spec(self, width: int) -> Mapping[str, CacheEntry]:
        """Keys and values of each token."""
        entry = CacheEntry(shape=(self.n_heads, width // self.n_heads))
        return {"key": entry, "value": entry}
