"""The layers that treat each token alone, in torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caramba_core.nn.frame import Frame
from caramba_core.nn.module import ComponentModule, linear
from caramba_plugins_standard.layers import Dropout, FeedForward, LayerNorm, Linear, Multiply, RMSNorm, SwiGLU

__all__ = [
    "DropoutModule",
    "FeedForwardModule",
    "LayerNormModule",
    "LinearHeadModule",
    "LinearModule",
    "MultiplyModule",
    "RMSNormModule",
    "SwiGLUModule",
    "TokenEmbedderModule",
    "gated",
    "rms_norm",
]


class TokenEmbedderModule(ComponentModule):
    """``F.embedding``, in autocast's type: all that is added to it would stay float32 otherwise, at twice the bytes."""

    weight: nn.Parameter

    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        """int64 ``[B, T] -> [B, T, D]``."""
        x, device = F.embedding(tokens, self.weight), tokens.device.type
        autocasts = device != "meta" and torch.is_autocast_enabled(device)  # which autocast does not know
        return x.to(torch.get_autocast_dtype(device)) if autocasts else x


class LinearHeadModule(ComponentModule):
    """``F.linear`` with the matrix that it is given: its own, or the embedder's where they are tied."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        """``[..., D]``, ``[V, D] -> [..., V]``."""
        return linear(x, weight)


class RMSNormModule(ComponentModule):
    """:func:`rms_norm` over the feature axis."""

    weight: nn.Parameter

    def __init__(self, config: RMSNorm, width: int) -> None:
        super().__init__(config, width)
        self.eps = config.eps
        self.offset = config.offset

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        return rms_norm(x, self.weight, self.eps, self.offset)


class LayerNormModule(ComponentModule):
    """``F.layer_norm``."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, config: LayerNorm, width: int) -> None:
        super().__init__(config, width)
        self.eps = config.eps
        if not config.bias:
            self.bias = None

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        return F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * (offset + weight)`` over the last axis; computed in float32 for narrower types.

    ``F.rms_norm`` where no gradient is wanted, and where it is one kernel: compiled, and on accelerators.  On a CPU it
    is a chain of kernels that keeps a copy of ``x``; there the formula and its gradient are spelled out, in half the
    time.
    """
    if offset:  # in half precision, 1 + weight would be rounded to a few values
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32)) + offset
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not torch.is_grad_enabled():
        return F.rms_norm(x.to(weight.dtype), weight.shape, weight, eps).to(x.dtype)
    normed: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return normed


class _RMSNorm(torch.autograd.Function):
    """With r = 1 / sqrt(mean(x^2) + eps), n = r x, h = g weight: dx = r (h - n mean(h n)) and dweight = sum(g n)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        with torch.autocast(x.device.type, enabled=False):  # which rounds a dot product
            scale: Tensor = torch.linalg.vecdot(wide, wide).div_(x.shape[-1]).add_(eps).rsqrt_().unsqueeze(-1)
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        if torch.is_grad_enabled():  # create_graph=True: in-place steps and the kept scale would give wrong numbers
            raise NotImplementedError("rms_norm on a CPU has no second derivative")
        x, weight, scale = ctx.saved_tensors
        gradient = gradient.to(scale.dtype)
        normed = x * scale
        to_weight = (gradient * normed).flatten(0, -2).sum(0)
        to_x = gradient * weight
        shared = torch.linalg.vecdot(to_x, normed).div_(x.shape[-1]).unsqueeze(-1)
        to_x = to_x.addcmul_(normed, shared, value=-1).mul_(scale)
        return to_x.to(x.dtype), to_weight.to(weight.dtype), None


class LinearModule(ComponentModule):
    """``F.linear``."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, config: Linear, width: int) -> None:
        super().__init__(config, width)
        if not config.bias:
            self.bias = None

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, d_out]``."""
        return linear(x, self.weight, self.bias)


class SwiGLUModule(ComponentModule):
    """Three ``F.linear`` and a gate."""

    gate_proj: nn.Parameter
    up_proj: nn.Parameter
    down_proj: nn.Parameter
    gate_bias: nn.Parameter | None
    up_bias: nn.Parameter | None
    down_bias: nn.Parameter | None

    def __init__(self, config: SwiGLU, width: int) -> None:
        super().__init__(config, width)
        if not config.bias:
            self.gate_bias = self.up_bias = self.down_bias = None

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        return linear(self.mix(x, frame), self.down_proj, self.down_bias)

    def mix(self, x: Tensor, frame: Frame) -> Tensor:
        """What the output projection reads: ``[B, T, D] -> [B, T, F]``."""
        return gated(*self.products(x, ("gate_proj", "gate_bias"), ("up_proj", "up_bias")))

    def joint_weights(self) -> tuple[str, ...]:
        """Gate and up."""
        return ("gate_proj", "up_proj")


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``."""
    if torch.compiler.is_compiling():  # the compiler makes one kernel of it, and chooses what to keep
        return F.silu(gate) * up
    if not torch.is_grad_enabled():
        return F.silu(gate).mul_(up)
    product: Tensor = _Gated.apply(gate, up)  # type: ignore[no-untyped-call]
    return product


class _Gated(torch.autograd.Function):
    """Without a copy of the activated gate, which is computed again for the gradient."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * up, gate), F.silu(gate).mul_(gradient)


class FeedForwardModule(SwiGLUModule):
    """Two or three ``F.linear`` and an activation."""

    xielu_p: nn.Parameter
    xielu_n: nn.Parameter
    xielu_beta: Tensor
    xielu_eps: Tensor

    def __init__(self, config: FeedForward, width: int) -> None:
        super().__init__(config, width)
        self.activation = config.activation
        self.gated = config.gated

    def mix(self, x: Tensor, frame: Frame) -> Tensor:
        """What the output projection reads: ``[B, T, D] -> [B, T, F]``."""
        if not self.gated:
            return self._activated(linear(x, self.up_proj, self.up_bias))
        gate, up = self.products(x, ("gate_proj", "gate_bias"), ("up_proj", "up_bias"))
        return self._activated(gate) * up

    def joint_weights(self) -> tuple[str, ...]:
        """Gate and up, where there is a gate."""
        return super().joint_weights() if self.gated else ()

    def _activated(self, x: Tensor) -> Tensor:
        if self.activation == "relu2":
            return F.relu(x).square()
        if self.activation == "xielu":
            rising = F.softplus(self.xielu_p) * x * x
            falling = (torch.expm1(torch.minimum(x, self.xielu_eps)) - x) * (self.xielu_beta + F.softplus(self.xielu_n))
            return torch.where(x > 0, rising, falling) + self.xielu_beta * x
        if self.activation.startswith("gelu"):
            return F.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        return F.silu(x) if self.activation == "silu" else F.relu(x)


class MultiplyModule(ComponentModule):
    """``x * by``."""

    def __init__(self, config: Multiply, width: int) -> None:
        super().__init__(config, width)
        self.by = config.by

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        return x * self.by


class DropoutModule(ComponentModule):
    """``F.dropout`` in training mode, nothing in evaluation mode."""

    def __init__(self, config: Dropout, width: int) -> None:
        super().__init__(config, width)
        self.p = config.p

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        return F.dropout(x, self.p, self.training)
