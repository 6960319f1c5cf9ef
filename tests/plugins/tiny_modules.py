"""The torch side of the small components.

Axes: B batch, T tokens of this pass, S tokens seen, D model, H heads, d head width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from caramba_core.nn.frame import Frame
from caramba_core.nn.module import ComponentModule
from tests.plugins.tiny import TinyAttention

__all__ = ["TinyAttentionModule", "TinyLinearModule"]


class TinyLinearModule(ComponentModule):
    """``F.linear``."""

    weight: Tensor

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D']``."""
        return F.linear(x, self.weight)


class TinyAttentionModule(ComponentModule):
    """One fused call, over this pass's tokens or over the cache's and this pass's."""

    config: TinyAttention
    q_proj: Tensor
    k_proj: Tensor
    v_proj: Tensor
    o_proj: Tensor

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        query, key, value = (self._heads(F.linear(x, weight)) for weight in (self.q_proj, self.k_proj, self.v_proj))
        if frame.cache is not None:
            seen = frame.cache.layer(self.site, frame.application).extend(key=key, value=value)
            key, value = seen["key"], seen["value"]
        tokens, context = query.shape[1], key.shape[1]
        mask = torch.ones(tokens, context, dtype=torch.bool, device=x.device).tril(context - tokens)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return F.linear(mixed.transpose(1, 2).flatten(2), self.o_proj)

    def _heads(self, x: Tensor) -> Tensor:
        """``[B, T, D] -> [B, T, H, d]``."""
        return x.view(*x.shape[:2], self.config.n_heads, -1)
