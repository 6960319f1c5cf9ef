"""``pretrain``: learn to predict the next token (config; light)."""

from __future__ import annotations

from typing import ClassVar

from caramba_core.components import component, option
from caramba_plugins_standard.training import Strategy

__all__ = ["Pretrain"]


@component
class Pretrain(Strategy):
    """Cross entropy with the text itself."""

    builds: ClassVar[str] = "caramba_plugins_standard.pretrain_runner:PretrainRunner"
    takes_documents: ClassVar[bool] = True

    logit_rows: int = option(default=512, help="tokens whose logits are held at once", unit="tokens", minimum=1)
