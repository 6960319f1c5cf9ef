"""Normalization over the feature axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from caramba_core.component import Constant, Cost, Layer, Shape, Weight, component, option

__all__ = ["LayerNorm", "RMSNorm"]


@component
class RMSNorm(Layer):
    """Scale by the root mean square: ``x / sqrt(mean(x^2) + eps) * weight`` (arXiv 1910.07467)."""

    role: ClassVar[str] = "norm"
    builds: ClassVar[str] = "caramba_plugins_standard.norm_modules:RMSNormModule"

    eps: float = option(default=1e-5, help="added to the mean square", above=0.0, maximum=0.1)

    def weights(self, width: int) -> Mapping[str, Weight]:
        """``weight`` ``[D]``, starting at 1."""
        return {"weight": Weight(shape=(width,), init=Constant(1.0))}

    def cost(self, width: int, shape: Shape) -> Cost:
        """No products; the input and one scale a token stay for the backward pass."""
        return Cost(saved=shape.rows * (width + 1))


@component
class LayerNorm(Layer):
    """Centre, scale to unit variance, then an affine map (arXiv 1607.06450)."""

    role: ClassVar[str] = "norm"
    builds: ClassVar[str] = "caramba_plugins_standard.norm_modules:LayerNormModule"

    eps: float = option(default=1e-5, help="added to the variance", above=0.0, maximum=0.1)
    bias: bool = option(default=True, help="add a learned offset")

    def weights(self, width: int) -> Mapping[str, Weight]:
        """``weight`` ``[D]``, starting at 1, and ``bias`` ``[D]``, starting at 0."""
        weights = {"weight": Weight(shape=(width,), init=Constant(1.0))}
        if self.bias:
            weights["bias"] = Weight(shape=(width,), init=Constant(0.0))
        return weights

    def cost(self, width: int, shape: Shape) -> Cost:
        """No products; the input, one mean and one scale a token stay for the backward pass."""
        return Cost(saved=shape.rows * (width + 2))
