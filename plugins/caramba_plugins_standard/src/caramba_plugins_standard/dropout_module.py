"""Dropout in torch."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from caramba_core.nn.frame import Frame
from caramba_core.nn.module import ComponentModule
from caramba_plugins_standard.dropout import Dropout

__all__ = ["DropoutModule"]


class DropoutModule(ComponentModule):
    """``F.dropout`` in training mode, nothing in evaluation mode."""

    def __init__(self, config: Dropout, width: int) -> None:
        super().__init__(config, width)
        self.p = config.p

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        return F.dropout(x, self.p, self.training)
