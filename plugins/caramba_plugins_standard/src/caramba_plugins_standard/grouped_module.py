"""The torch side of attentions with plain projections.

Axes: B batch, T tokens of this pass, D model, H query heads, G key/value heads, d head width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from caramba_core.nn.frame import Frame
from caramba_core.nn.module import ComponentModule
from caramba_plugins_standard.grouped import GroupedAttention
from caramba_plugins_standard.norm_modules import rms_norm
from caramba_plugins_standard.rotary import Rotary

__all__ = ["GroupedAttentionModule"]


class GroupedAttentionModule(ComponentModule):
    """``[B, T, D] -> [B, T, D]``: what :meth:`mix` gives, through the output projection."""

    q_proj: nn.Parameter
    k_proj: nn.Parameter
    v_proj: nn.Parameter
    o_proj: nn.Parameter
    q_bias: nn.Parameter | None
    k_bias: nn.Parameter | None
    v_bias: nn.Parameter | None
    o_bias: nn.Parameter | None
    q_norm: nn.Parameter
    k_norm: nn.Parameter

    def __init__(self, config: GroupedAttention, width: int) -> None:
        super().__init__(config, width)
        self.n_heads = config.n_heads
        self.n_kv_heads = config.n_kv_heads
        self.head_dim = config.head_dim
        self.multiplier = config.multiplier
        self.qk_norm_eps = config.qk_norm_eps
        self.rotary = None if config.rope is None else Rotary(config.rope, config.head_dim)
        if not config.qkv_bias:
            self.q_bias = self.k_bias = self.v_bias = None
        if not config.o_bias:
            self.o_bias = None

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        return F.linear(self.mix(x, frame), self.o_proj, self.o_bias)

    def mix(self, x: Tensor, frame: Frame) -> Tensor:
        """What the output projection reads: ``[B, T, D] -> [B, T, H d]``."""
        raise NotImplementedError(f"{type(self).__name__} does not define mix")

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[B, H, T, d]``, keys and values ``[B, G, T, d]``, before rotation."""
        heads = (*x.shape[:2], -1, self.head_dim)
        query = F.linear(x, self.q_proj, self.q_bias).view(heads)
        key = F.linear(x, self.k_proj, self.k_bias).view(heads)
        value = F.linear(x, self.v_proj, self.v_bias).view(heads)
        if self.qk_norm_eps is not None:
            query = rms_norm(query, self.q_norm, self.qk_norm_eps)
            key = rms_norm(key, self.k_norm, self.qk_norm_eps)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, causal: bool = False
    ) -> Tensor:
        """Softmax attention of ``[B, H, T, d]`` to ``[B, G, S, d]`` in one fused call."""
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=causal,
            scale=self.multiplier,
            enable_gqa=self.n_kv_heads != self.n_heads,
        )
