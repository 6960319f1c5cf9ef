"""The gated MLP in torch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from caramba_core.nn.frame import Frame
from caramba_core.nn.module import ComponentModule
from caramba_plugins_standard.swiglu import SwiGLU

__all__ = ["SwiGLUModule"]


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
        gate = F.linear(x, self.gate_proj, self.gate_bias)
        up = F.linear(x, self.up_proj, self.up_bias)
        return F.linear(F.silu(gate) * up, self.down_proj, self.down_bias)
