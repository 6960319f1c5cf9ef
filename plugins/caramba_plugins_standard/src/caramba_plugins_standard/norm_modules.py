"""Normalization in torch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from caramba_core.nn.frame import Frame
from caramba_core.nn.module import ComponentModule
from caramba_plugins_standard.norms import LayerNorm, RMSNorm

__all__ = ["LayerNormModule", "RMSNormModule"]


class RMSNormModule(ComponentModule):
    """Computes in float32 for narrower types, as ``F.rms_norm`` does."""

    weight: nn.Parameter

    def __init__(self, config: RMSNorm, width: int) -> None:
        super().__init__(config, width)
        self.eps = config.eps

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        return F.rms_norm(x, (self.width,), self.weight, self.eps)


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
