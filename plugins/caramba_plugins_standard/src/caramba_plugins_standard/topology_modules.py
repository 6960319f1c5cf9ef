"""Topologies in torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from caramba_core.nn.frame import Frame
from caramba_core.nn.module import TopologyModule

__all__ = ["NestedModule", "residual"]


def residual(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``x + f(x)``."""
    return x + run(x)


class NestedModule(TopologyModule):
    """Bodies one after the other."""

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D']``."""
        for name in self.bodies:
            x = self._modules[name](x, frame)  # type: ignore[misc]
            if frame.taps is not None and not torch.compiler.is_compiling():
                frame.taps.flush()
        return x
