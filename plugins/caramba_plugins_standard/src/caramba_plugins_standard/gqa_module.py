"""Grouped-query attention in torch.

Axes: B batch, T tokens of this pass, S tokens seen, D model, H query heads, G key/value heads, d head width.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor
from torch.nn import functional as F

from caramba_core.nn.frame import Frame
from caramba_core.nn.module import Probe
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.grouped_module import GroupedAttentionModule
from caramba_plugins_standard.rotary import rotate

__all__ = ["GroupedQueryAttentionModule", "visible"]


def visible(tokens: int, context: int, window: int | None, device: torch.device) -> Tensor:
    """Bool ``[T, S]``: which of ``context`` tokens each of the last ``tokens`` of them sees."""
    query = torch.arange(context - tokens, context, device=device)[:, None]
    key = torch.arange(context, device=device)[None, :]
    mask = key <= query
    return mask if window is None else mask & (key > query - window)


class GroupedQueryAttentionModule(GroupedAttentionModule):
    """One fused call, over this pass's tokens or over the cache's and this pass's."""

    def __init__(self, config: GroupedQueryAttention, width: int) -> None:
        super().__init__(config, width)
        self.window = config.window

    def mix(self, x: Tensor, frame: Frame) -> Tensor:
        """What the output projection reads: ``[B, T, D] -> [B, T, H d]``."""
        query, key, value = self.project(x)
        query, key = self._turn(query, key, frame)
        before = 0
        if frame.cache is not None:
            layer = frame.cache.layer(self.site, frame.application)
            before = layer.length
            seen = layer.extend(key=key.transpose(1, 2), value=value.transpose(1, 2))
            key, value = seen["key"].transpose(1, 2), seen["value"].transpose(1, 2)
        tokens, context = query.shape[2], key.shape[2]
        mask, causal = None, False
        if tokens > 1:  # a single token sees everything that its cache still holds
            if tokens == context and (self.window is None or context <= self.window):
                causal = True
            else:
                mask = visible(tokens, context, self.window, x.device)
        padding = frame.hidden_padding(before, context)
        if padding is not None:
            seen_by = visible(tokens, context, self.window, x.device)
            mask, causal = (seen_by & ~padding).unsqueeze(1), False
        mixed = self.attend(query, key, value, mask, causal=causal)
        return mixed.transpose(1, 2).flatten(2)

    def probe(self, x: Tensor, frame: Frame) -> Probe:
        """What happens inside, spelled out in float32 (or wider): for calibration, and the fused call's reference."""
        assert frame.cache is None, "calibration reads whole sequences"
        wide = torch.promote_types(x.dtype, torch.float32)
        if self.o_proj.dtype != wide or x.dtype != wide:
            return deepcopy(self).to(wide).probe(x.to(wide), frame)
        query, key, value = self.project(x)
        turned_query, turned_key = self._turn(query, key, frame)
        share = self.n_heads // self.n_kv_heads
        scores = turned_query @ turned_key.repeat_interleave(share, dim=1).transpose(2, 3) * self.multiplier
        tokens = x.shape[1]
        scores = scores.masked_fill(~visible(tokens, tokens, self.window, x.device), float("-inf"))
        probabilities = scores.softmax(dim=-1)
        mixed = (probabilities @ value.repeat_interleave(share, dim=1)).transpose(1, 2).flatten(2)
        return Probe(
            x=x,
            query=query,
            key=key,
            value=value,
            probabilities=probabilities,
            mixed=mixed,
            output=F.linear(mixed, self.o_proj, self.o_bias),
            positions=frame.positions,
        )

    def _turn(self, query: Tensor, key: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
        if self.rotary is None:
            return query, key
        cos, sin = self.rotary(frame.positions)
        return rotate(query, cos, sin), rotate(key, cos, sin)
