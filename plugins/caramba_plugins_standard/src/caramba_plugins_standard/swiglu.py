"""The gated MLP of the Llama family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from caramba_core.component import Constant, Cost, Layer, Normal, Shape, Weight, component, option

__all__ = ["SwiGLU"]


@component
class SwiGLU(Layer):
    """``down(silu(gate(x)) * up(x))`` (arXiv 2002.05202)."""

    role: ClassVar[str] = "mlp"
    output_weights: ClassVar[tuple[str, str] | None] = ("down_proj", "down_bias")
    builds: ClassVar[str] = "caramba_plugins_standard.swiglu_module:SwiGLUModule"

    d_ff: int = option(help="hidden width", unit="features", minimum=1)
    bias: bool = option(default=False, help="add learned offsets to all three projections")
    init_std: float = option(default=0.02, help="standard deviation of the initial weights", above=0.0)

    def weights(self, width: int) -> Mapping[str, Weight]:
        """``gate_proj`` and ``up_proj`` ``[F, D]``, ``down_proj`` ``[D, F]``, and their biases."""
        init = Normal(self.init_std)
        weights = {
            "gate_proj": Weight(shape=(self.d_ff, width), init=init),
            "up_proj": Weight(shape=(self.d_ff, width), init=init),
            "down_proj": Weight(shape=(width, self.d_ff), init=init),
        }
        if self.bias:
            weights["gate_bias"] = Weight(shape=(self.d_ff,), init=Constant(0.0))
            weights["up_bias"] = Weight(shape=(self.d_ff,), init=Constant(0.0))
            weights["down_bias"] = Weight(shape=(width,), init=Constant(0.0))
        return weights

    def cost(self, width: int, shape: Shape) -> Cost:
        """Three products; the input, gate, up and the gated product stay."""
        rows = shape.rows
        return Cost.product(rows, width, 3 * self.d_ff, saved=rows * (width + 3 * self.d_ff))
