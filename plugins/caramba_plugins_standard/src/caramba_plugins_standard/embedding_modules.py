"""Embedder and head in torch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from caramba_core.nn.module import ComponentModule

__all__ = ["LinearHeadModule", "TokenEmbedderModule"]


class TokenEmbedderModule(ComponentModule):
    """``F.embedding``."""

    weight: nn.Parameter

    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        """int64 ``[B, T] -> [B, T, D]``."""
        return F.embedding(tokens, self.weight)


class LinearHeadModule(ComponentModule):
    """``F.linear`` with the matrix that it is given: its own, or the embedder's where they are tied."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        """``[..., D]``, ``[V, D] -> [..., V]``."""
        return F.linear(x, weight)
