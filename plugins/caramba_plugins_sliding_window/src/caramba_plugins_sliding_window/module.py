"""Sliding-window attention with sink tokens in torch.

Axes: B batch, T tokens of this pass, S tokens seen, D model, H query heads, G key/value heads, d head width.
"""

from __future__ import annotations

import torch
from caramba_plugins_standard.rotary import Rotary, rotate
from torch import Tensor
from torch.nn import functional as F

from caramba_core.nn.frame import Frame
from caramba_core.nn.module import ComponentModule
from caramba_plugins_sliding_window.attention import SlidingWindowAttention

__all__ = ["SlidingWindowModule"]


class SlidingWindowModule(ComponentModule):
    """``[B, T, D] -> [B, T, D]``; :mod:`caramba_plugins_sliding_window.reference` spells it out."""

    config: SlidingWindowAttention
    q_proj: Tensor
    k_proj: Tensor
    v_proj: Tensor
    o_proj: Tensor

    def __init__(self, config: SlidingWindowAttention, width: int) -> None:
        super().__init__(config, width)
        self.rotary = None if config.rope is None else Rotary(config.rope, config.head_dim)

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        return F.linear(self.mix(x, frame), self.o_proj, self._optional("o_bias"))

    def mix(self, x: Tensor, frame: Frame) -> Tensor:
        """What the output projection reads: ``[B, T, D] -> [B, T, H d]``."""
        config, tokens = self.config, x.shape[1]
        layer = None if frame.cache is None else frame.cache.layer(self.site, frame.application)
        before = 0 if layer is None else layer.length
        query, key, value = self._project(x)
        to_sinks = None
        if self.rotary is not None:
            cos, sin = self.rotary(frame.positions)
            if config.near_sinks and before + tokens > config.held:
                start = frame.positions[..., :1] - before
                to_sinks = rotate(query, *self.rotary(frame.positions.minimum(start + config.held - 1)))
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if layer is not None:
            seen = layer.extend(key=key.transpose(1, 2), value=value.transpose(1, 2))
            key, value = seen["key"].transpose(1, 2), seen["value"].transpose(1, 2)
        mask = None if tokens == 1 else self._visible(before, tokens, key.shape[2], x.device)
        if to_sinks is None:
            mixed = self._fused(query, key, value, mask)
        elif before:
            mixed = self._apart(query, to_sinks, key, value, mask)
        else:
            mixed = self._fused_apart(query, to_sinks, key, value, mask)
        return mixed.transpose(1, 2).flatten(2)

    def _optional(self, name: str) -> Tensor | None:
        tensor: Tensor | None = getattr(self, name, None)
        return tensor

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[B, H, T, d]``, keys and values ``[B, G, T, d]``, before rotation."""
        config = self.config
        heads = (*x.shape[:2], -1, config.head_dim)
        query = F.linear(x, self.q_proj, self._optional("q_bias")).view(heads)
        key = F.linear(x, self.k_proj, self._optional("k_bias")).view(heads)
        value = F.linear(x, self.v_proj, self._optional("v_bias")).view(heads)
        if config.qk_norm_eps is not None:
            query = F.rms_norm(query, (config.head_dim,), self._optional("q_norm"), config.qk_norm_eps)
            key = F.rms_norm(key, (config.head_dim,), self._optional("k_norm"), config.qk_norm_eps)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def _visible(self, before: int, tokens: int, context: int, device: torch.device) -> Tensor | None:
        """Bool ``[T, S]``; none where a pass from the start of the text sees everything up to each token.

        Of the tokens before this pass the cache has shown the first ``sinks``, then the last ones.
        """
        config, end = self.config, before + tokens
        if before == 0 and tokens <= config.held:
            return None
        query = torch.arange(before, end, device=device)[:, None]
        first = min(before, config.sinks)
        last = torch.arange(end - context + first, end, device=device)
        key = torch.cat([torch.arange(first, device=device), last])
        return (key <= query) & ((key < config.sinks) | (key > query - config.window))

    def _fused(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None and query.shape[2] > 1,
            scale=self.config.multiplier,
            enable_gqa=self.config.n_kv_heads != self.config.n_heads,
        )

    def _fused_apart(self, query: Tensor, to_sinks: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """One call of twice the width: sinks meet the queries turned for them, other keys the rest.

        Values are padded with zeros: with unequal widths the flash kernels step back to a path that is several times
        slower.
        """
        width, sinks = key.shape[3], self.config.sinks
        keys = torch.cat(
            [F.pad(key[:, :, :sinks], (width, 0)), F.pad(key[:, :, sinks:], (0, width))],
            dim=2,
        )
        mixed = self._fused(torch.cat([query, to_sinks], dim=3), keys, F.pad(value, (0, width)), mask)
        return mixed[..., :width]

    def _apart(self, query: Tensor, to_sinks: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """The same against a cache, without widening it."""
        sinks, groups = self.config.sinks, self.config.n_kv_heads
        batch, _, tokens, width = query.shape
        near = query.reshape(batch, groups, -1, width) @ key[:, :, sinks:].transpose(2, 3)
        far = to_sinks.reshape(batch, groups, -1, width) @ key[:, :, :sinks].transpose(2, 3)
        scores = torch.cat([far, near], dim=3).view(batch, groups, -1, tokens, key.shape[2])  # [B, G, m, T, S]
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32)) * self.config.multiplier
        if mask is not None:
            wide = wide.masked_fill(~mask, float("-inf"))
        probabilities = wide.softmax(dim=-1).to(value.dtype)
        mixed = probabilities.flatten(2, 3) @ value
        return mixed.view(query.shape)
