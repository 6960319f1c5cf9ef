"""A dense projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from caramba_core.component import Constant, Cost, Layer, Normal, Shape, Weight, component, option

__all__ = ["Linear"]


@component
class Linear(Layer):
    """``x weight^T + bias``, to a width of its own choosing."""

    role: ClassVar[str] = "linear"
    builds: ClassVar[str] = "caramba_plugins_standard.linear_module:LinearModule"

    d_out: int | None = option(default=None, help="output width; the input's if not given", unit="features", minimum=1)
    bias: bool = option(default=False, help="add a learned offset")
    init_std: float = option(default=0.02, help="standard deviation of the initial weights", above=0.0)

    def output_width(self, width: int) -> int:
        """``d_out``."""
        return width if self.d_out is None else self.d_out

    def weights(self, width: int) -> Mapping[str, Weight]:
        """``weight`` ``[d_out, D]``, ``bias`` ``[d_out]``."""
        columns = self.output_width(width)
        weights = {"weight": Weight(shape=(columns, width), init=Normal(self.init_std))}
        if self.bias:
            weights["bias"] = Weight(shape=(columns,), init=Constant(0.0))
        return weights

    def cost(self, width: int, shape: Shape) -> Cost:
        """One product; its input stays."""
        return Cost.product(shape.rows, width, self.output_width(width), saved=shape.rows * width)
