"""A dense projection in torch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from caramba_core.nn.frame import Frame
from caramba_core.nn.module import ComponentModule
from caramba_plugins_standard.linear import Linear

__all__ = ["LinearModule"]


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
        return F.linear(x, self.weight, self.bias)
