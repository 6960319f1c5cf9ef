"""Layers that treat each token alone: embedder and head, norms, projections, the gated MLP, dropout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Final, Literal

from caramba_core.components import Constant, Cost, Embedder, Head, Layer, Normal, Shape, Weight, component, option

__all__ = [
    "Dropout",
    "FeedForward",
    "LayerNorm",
    "Linear",
    "LinearHead",
    "Multiply",
    "RMSNorm",
    "SwiGLU",
    "TokenEmbedder",
]


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
    """Scale by the root mean square: ``x / sqrt(mean(x^2) + eps) * (offset + weight)`` (arXiv 1910.07467)."""

    role: ClassVar[str] = "norm"
    builds: ClassVar[str] = "caramba_plugins_standard.layer_modules:RMSNormModule"

    eps: float = option(default=1e-5, help="added to the mean square", above=0.0, maximum=0.1)
    offset: float = option(default=0.0, help="added to the weight: 1 where checkpoints store its distance from 1")

    def weights(self, width: int) -> Mapping[str, Weight]:
        """``weight`` ``[D]``, starting at ``1 - offset``."""
        return {"weight": Weight(shape=(width,), init=Constant(1.0 - self.offset))}

    def cost(self, width: int, shape: Shape) -> Cost:
        """No products; the input and one scale a token stay for the backward pass, and the sum of weight and offset."""
        return Cost(saved=shape.rows * (width + 1) + (width if self.offset else 0))


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
class FeedForward(SwiGLU):
    """``down(f(gate(x)) * up(x))``, or ``down(f(up(x)))`` without a gate, f being any of several activations.

    Sources: GLU variants (arXiv 2002.05202), squared ReLU (2109.08668), xIELU (2411.13010).
    """

    builds: ClassVar[str] = "caramba_plugins_standard.layer_modules:FeedForwardModule"

    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "xielu"] = option(
        help="f; xielu has learned slopes of its own",
        choices=("silu", "gelu", "gelu_tanh", "relu", "relu2", "xielu"),
    )
    gated: bool = option(default=True, help="multiply by a second projection of the input")

    def weights(self, width: int) -> Mapping[str, Weight]:
        """As of SwiGLU, without ``gate_*`` where there is no gate; ``xielu_*`` where f is xIELU.

        ``xielu_p`` and ``xielu_n`` ``[1]`` are the slopes behind a softplus, ``xielu_beta`` and ``xielu_eps`` ``[]``
        constants that checkpoints store.
        """
        weights = dict(super().weights(width))
        if not self.gated:
            weights = {name: weight for name, weight in weights.items() if not name.startswith("gate_")}
        if self.activation == "xielu":
            weights["xielu_p"] = Weight(shape=(1,), init=Constant(_XIELU_P))
            weights["xielu_n"] = Weight(shape=(1,), init=Constant(_XIELU_N))
            weights["xielu_beta"] = Weight(shape=(), init=Constant(_XIELU_BETA), trainable=False)
            weights["xielu_eps"] = Weight(shape=(), init=Constant(-1e-6), trainable=False)
        return weights

    def cost(self, width: int, shape: Shape) -> Cost:
        """Two or three products; the input, what f goes through, and with a gate up and the gated product stay."""
        rows, products = shape.rows, 3 if self.gated else 2
        kept = {"relu": 1, "xielu": 6}.get(self.activation, 2) + (2 if self.gated else 0)
        slopes = 4 if self.activation == "xielu" else 0
        return Cost.product(rows, width, products * self.d_ff, saved=rows * (width + kept * self.d_ff) + slopes)


_XIELU_BETA: Final = 0.5
_XIELU_P: Final = math.log(math.expm1(0.8))
_XIELU_N: Final = math.log(math.expm1(0.8 - _XIELU_BETA))
"""Both slopes start at 0.8 (arXiv 2411.13010)."""


@component
class Multiply(Layer):
    """``x * by``: a fixed factor of the residual stream, of what is added to it, or of what the head reads."""

    role: ClassVar[str] = "multiply"
    builds: ClassVar[str] = "caramba_plugins_standard.layer_modules:MultiplyModule"

    by: float = option(help="the factor", above=0.0)

    def cost(self, width: int, shape: Shape) -> Cost:
        """No products; nothing stays."""
        return Cost()


@component
class Dropout(Layer):
    """Zero each value with probability ``p`` while training, and scale the others by ``1 / (1 - p)``."""

    role: ClassVar[str] = "dropout"
    builds: ClassVar[str] = "caramba_plugins_standard.layer_modules:DropoutModule"

    p: float = option(default=0.1, help="probability of a value to be zeroed", minimum=0.0, below=1.0)

    def cost(self, width: int, shape: Shape) -> Cost:
        """No products; the mask stays."""
        return Cost(saved=shape.rows * width if self.p else 0)
