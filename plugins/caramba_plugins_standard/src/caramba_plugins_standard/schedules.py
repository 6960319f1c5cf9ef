"""Learning-rate schedules: a warm-up, then a shape.

Step s of n (0-based), w warm-up steps: while s < w the factor is (s + 1) / w, then the shape at (s - w) / (n - w).
"""

from __future__ import annotations

import math

from caramba_core.components import component, option
from caramba_core.errors import InvalidValue
from caramba_plugins_standard.training import Schedule

__all__ = ["Constant", "Cosine", "Linear"]


@component
class Constant(Schedule):
    """Full rate after the warm-up."""

    warmup: float = option(
        default=0.0,
        help="steps of linear warm-up: a whole number, or below 1 a fraction of all",
        unit="steps",
        minimum=0.0,
    )

    def __attrs_post_init__(self) -> None:
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            raise InvalidValue("warmup", f"{self.warmup} is no whole number", expected="steps, or a fraction below 1")

    def factor(self, step: int, steps: int) -> float:
        """Multiplier of the learning rate, from above 0 to 1."""
        warmup = int(self.warmup) if self.warmup >= 1 else math.ceil(self.warmup * steps)
        if step < warmup:
            return (step + 1) / warmup
        return self.shape((step - warmup) / max(1, steps - warmup))

    def shape(self, progress: float) -> float:
        """The factor at ``progress`` from 0 (end of the warm-up) to 1 (end of the run)."""
        return 1.0


@component
class Linear(Constant):
    """Down a straight line to ``final``."""

    final: float = option(default=0.0, help="factor at the end", minimum=0.0, maximum=1.0)

    def shape(self, progress: float) -> float:
        """From 1 to ``final``."""
        return self.final + (1.0 - self.final) * (1.0 - progress)


@component
class Cosine(Constant):
    """Down half a cosine wave to ``final`` (arXiv 1608.03983, without restarts)."""

    final: float = option(default=0.0, help="factor at the end", minimum=0.0, maximum=1.0)

    def shape(self, progress: float) -> float:
        """From 1 to ``final``."""
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * progress))
