"""Layers that treat each token alone: embedder and head, norms, projections, the gated MLP, dropout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from caramba_core.components import Constant, Cost, Embedder, Head, Layer, Normal, Shape, Weight, component, option

__all__ = ["Dropout", "LayerNorm", "Linear", "LinearHead", "RMSNorm", "SwiGLU", "TokenEmbedder"]


@component
class TokenEmbedder(Embedder):
    """One learned vector a token id."""

    builds: ClassVar[str] = "caramba_plugins_standard.layer_modules:TokenEmbedderModule"

    d_model: int = option(help="width of the vectors, and of the residual stream", unit="features", minimum=1)
    init_std: float = option(default=0.02, help="standard deviation of the initial vectors", above=0.0)

    def output_width(self, width: int) -> int:
        """``d_model``."""
        return self.d_model

    def weights(self, width: int) -> Mapping[str, Weight]:
        """``weight`` ``[V, D]``."""
        return {"weight": Weight(shape=(self.vocab_size, self.d_model), init=Normal(self.init_std))}

    def cost(self, width: int, shape: Shape) -> Cost:
        """No products; the token ids stay."""
        return Cost(saved=shape.rows)


@component
class LinearHead(Head):
    """``x weight^T``."""

    builds: ClassVar[str] = "caramba_plugins_standard.layer_modules:LinearHeadModule"

    init_std: float = option(default=0.02, help="standard deviation of the initial weights", above=0.0)

    def output_width(self, width: int) -> int:
        """The vocabulary size."""
        assert self.vocab_size is not None, "lowering fills it"
        return self.vocab_size

    def weights(self, width: int) -> Mapping[str, Weight]:
        """``weight`` ``[V, D]``, unless it is the embedder's."""
        if self.tied:
            return {}
        return {"weight": Weight(shape=(self.output_width(width), width), init=Normal(self.init_std))}

    def cost(self, width: int, shape: Shape) -> Cost:
        """One product; its input stays."""
        return Cost.product(shape.rows, width, self.output_width(width), saved=shape.rows * width)


@component
class RMSNorm(Layer):
    """Scale by the root mean square: ``x / sqrt(mean(x^2) + eps) * weight`` (arXiv 1910.07467)."""

    role: ClassVar[str] = "norm"
    builds: ClassVar[str] = "caramba_plugins_standard.layer_modules:RMSNormModule"

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
    builds: ClassVar[str] = "caramba_plugins_standard.layer_modules:LayerNormModule"

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


@component
class Linear(Layer):
    """``x weight^T + bias``, to a width of its own choosing."""

    role: ClassVar[str] = "linear"
    builds: ClassVar[str] = "caramba_plugins_standard.layer_modules:LinearModule"

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


@component
class SwiGLU(Layer):
    """``down(silu(gate(x)) * up(x))`` (arXiv 2002.05202)."""

    role: ClassVar[str] = "mlp"
    output_weights: ClassVar[tuple[str, str] | None] = ("down_proj", "down_bias")
    builds: ClassVar[str] = "caramba_plugins_standard.layer_modules:SwiGLUModule"

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


@component
class Dropout(Layer):
    """Zero each value with probability ``p`` while training, and scale the others by ``1 / (1 - p)``."""

    role: ClassVar[str] = "dropout"
    builds: ClassVar[str] = "caramba_plugins_standard.layer_modules:DropoutModule"

    p: float = option(default=0.1, help="probability of a value to be zeroed", minimum=0.0, below=1.0)

    def cost(self, width: int, shape: Shape) -> Cost:
        """No products; the mask stays."""
        return Cost(saved=shape.rows * width if self.p else 0)
