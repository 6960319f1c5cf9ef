"""``pretrain`` and ``finetune``: learn to predict the next token (configs; light)."""

from __future__ import annotations

from typing import ClassVar

from caramba_core.components import component, option
from caramba_plugins_standard.training import Strategy

__all__ = ["Finetune", "Pretrain"]


@component
class Pretrain(Strategy):
    """Cross entropy with the text itself."""

    builds: ClassVar[str] = "caramba_plugins_standard.pretrain_runner:PretrainRunner"
    takes_documents: ClassVar[bool] = True

    logit_rows: int = option(default=2048, help="tokens whose logits are held at once", unit="tokens", minimum=1)


@component
class Finetune(Pretrain):
    """Cross entropy with the text itself, from weights that were trained before: the teacher's, or another run's."""

    needs_weights: ClassVar[bool] = True
