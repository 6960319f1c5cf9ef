"""``upcycle.blockwise`` and ``upcycle.global``: the strategies that learn from a teacher (configs; light)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from caramba_plugins_standard.training import Strategy

from caramba_core.components import component, option
from caramba_core.errors import InvalidValue
from caramba_core.sites import Site

__all__ = ["Blockwise", "Global"]


@component
class Blockwise(Strategy):
    """Normalised squared error of each converted attention's output, after its output projection."""

    builds: ClassVar[str] = "caramba_plugins_upcycle.strategy_runners:BlockwiseRunner"
    takes_documents: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True
    whole_model: ClassVar[bool] = False

    inputs: Literal["teacher", "student"] = option(
        default="teacher", help="whose hidden states the student's attentions read while they learn"
    )

    def check(self, sites: Sequence[Site], trained: frozenset[str]) -> None:
        """It trains converted attentions, and nothing else."""
        if not sites:
            said = "there is nothing to train: teacher and student have the same attentions"
            raise InvalidValue("train", said, within=("strategy",))
        if others := sorted(trained - {site.name for site in sites}):
            raise InvalidValue(
                "train",
                f"upcycle.blockwise trains converted attentions only, and this names {others[0]} "
                f"(and {len(others) - 1} more)",
                expected="trains: [attention], or patterns of converted attentions",
                within=("trains",),
            )


@component
class Global(Strategy):
    """KL divergence from the teacher over the full vocabulary, optionally mixed with cross entropy."""

    builds: ClassVar[str] = "caramba_plugins_upcycle.strategy_runners:GlobalRunner"
    takes_documents: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True

    temperature: float = option(default=1.0, help="divides both logits before the softmax", above=0.0)
    cross_entropy: float = option(default=0.0, help="weight of the cross entropy with the text itself", minimum=0.0)
    logit_rows: int = option(default=512, help="tokens whose logits are held at once", unit="tokens", minimum=1)
