"""The gated MLP in torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caramba_core.nn.frame import Frame
from caramba_core.nn.module import ComponentModule
from caramba_plugins_standard.swiglu import SwiGLU

__all__ = ["SwiGLUModule", "gated"]


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
        return F.linear(self.mix(x, frame), self.down_proj, self.down_bias)

    def mix(self, x: Tensor, frame: Frame) -> Tensor:
        """What the output projection reads: ``[B, T, D] -> [B, T, F]``."""
        return gated(F.linear(x, self.gate_proj, self.gate_bias), F.linear(x, self.up_proj, self.up_bias))


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``."""
    if torch.compiler.is_compiling():  # the compiler makes one kernel of it, and chooses what to keep
        return F.silu(gate) * up
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
