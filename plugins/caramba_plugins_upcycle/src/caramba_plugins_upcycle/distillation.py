"""``upcycle.global``: the whole student learns the teacher's distribution over the next token (config; light)."""

from __future__ import annotations

from typing import ClassVar

from caramba_plugins_standard.training import Strategy

from caramba_core.component import component, option

__all__ = ["Global"]


@component
class Global(Strategy):
    """KL divergence from the teacher over the full vocabulary, optionally mixed with cross entropy."""

    builds: ClassVar[str] = "caramba_plugins_upcycle.distillation_runner:GlobalRunner"
    needs_teacher: ClassVar[bool] = True

    temperature: float = option(default=1.0, help="divides both logits before the softmax", above=0.0)
    cross_entropy: float = option(default=0.0, help="weight of the cross entropy with the text itself", minimum=0.0)
    logit_rows: int = option(default=512, help="tokens whose logits are held at once", unit="tokens", minimum=1)
