"""What the start of linear attention reads: some sequences as they are."""

from __future__ import annotations

from typing import ClassVar

from caramba_plugins_upcycle.transplant import Moment

from caramba_core.component import component, option

__all__ = ["SequenceMoments"]


@component
class SequenceMoments(Moment):
    """``query`` ``[N, H, T, d]`` and ``key`` ``[N, G, T, d]`` of the first sequences, before rotation, in float32.

    Which far tokens a query attends to is a question about pairs, which no sum over tokens answers.
    """

    builds: ClassVar[str] = "caramba_plugins_linear.collector:SequenceCollector"

    count: int = option(default=8, help="sequences that are kept", minimum=1)
