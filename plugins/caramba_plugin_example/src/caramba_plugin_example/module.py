"""Attention with linear distance biases, in torch."""

import torch
from torch import Tensor
from torch.nn import functional as F

from caramba_core.nn.frame import Frame
from caramba_core.nn.module import ComponentModule
from caramba_plugin_example.attention import AlibiAttention


class AlibiModule(ComponentModule):
    """Axes: B batch, T tokens of this pass, S tokens seen, D model, H heads, d head width."""

    config: AlibiAttention
    q_proj: Tensor
    k_proj: Tensor
    v_proj: Tensor
    o_proj: Tensor

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        shape = (*x.shape[:2], self.config.n_heads, -1)
        query, key, value = (F.linear(x, weight).view(shape) for weight in (self.q_proj, self.k_proj, self.v_proj))
        if frame.cache is not None:
            seen = frame.cache.layer(self.site, frame.application).extend(key=key, value=value)
            key, value = seen["key"], seen["value"]
        bias = self.bias(query.shape[1], key.shape[1], x)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return F.linear(mixed.transpose(1, 2).flatten(2), self.o_proj)

    def bias(self, tokens: int, context: int, like: Tensor) -> Tensor:
        """What distances add to scores, ``[H, T, S]``: a slope a head, and nothing from later tokens."""
        at = torch.arange(context, device=like.device)
        distance = at[context - tokens :, None] - at
        heads = torch.arange(1, self.config.n_heads + 1, device=like.device)
        slopes = 2.0 ** (-8 * heads / self.config.n_heads)
        falling = -slopes[:, None, None] * distance
        return falling.masked_fill(distance < 0, -torch.inf).to(like.dtype)
