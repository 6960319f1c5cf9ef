"""Dropout."""

from __future__ import annotations

from typing import ClassVar

from caramba_core.component import Cost, Layer, Shape, component, option

__all__ = ["Dropout"]


@component
class Dropout(Layer):
    """Zero each value with probability ``p`` while training, and scale the others by ``1 / (1 - p)``."""

    role: ClassVar[str] = "dropout"
    builds: ClassVar[str] = "caramba_plugins_standard.dropout_module:DropoutModule"

    p: float = option(default=0.1, help="probability of a value to be zeroed", minimum=0.0, below=1.0)

    def cost(self, width: int, shape: Shape) -> Cost:
        """No products; the mask stays."""
        return Cost(saved=shape.rows * width if self.p else 0)
