"""``upcycle.blockwise``: each converted attention learns its teacher's output, all in one pass (config; light)."""

from __future__ import annotations

from typing import ClassVar, Literal

from caramba_plugins_standard.training import Strategy

from caramba_core.component import component, option

__all__ = ["Blockwise"]


@component
class Blockwise(Strategy):
    """Normalised squared error of each converted attention's output, after its output projection."""

    builds: ClassVar[str] = "caramba_plugins_upcycle.blockwise_runner:BlockwiseRunner"
    needs_teacher: ClassVar[bool] = True
    whole_model: ClassVar[bool] = False

    inputs: Literal["teacher", "student"] = option(
        default="teacher", help="whose hidden states the student's attentions read while they learn"
    )
