"""Attention with plain projections in torch: the base of others, and grouped-query attention itself.

Axes: B batch, T tokens of this pass, S tokens seen, D model, H query heads, G key/value heads, d head width.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

from caramba_core.nn.cache import LayerCache
from caramba_core.nn.frame import Frame
from caramba_core.nn.module import ComponentModule, linear
from caramba_plugins_standard.decoding.attention import CachedPart, attend_cached
from caramba_plugins_standard.gqa import GroupedAttention, GroupedQueryAttention
from caramba_plugins_standard.layer_modules import rms_norm
from caramba_plugins_standard.probing import Probe
from caramba_plugins_standard.rotary import Rotary, rotate
from caramba_plugins_standard.training.documents import PackedFrame

__all__ = ["GroupedAttentionModule", "GroupedQueryAttentionModule", "norm_heads", "visible"]


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
        self.qk_norm_offset = config.qk_norm_offset
        self.rotary = None if config.rope is None else Rotary(config.rope, config.head_dim)
        if not config.qkv_bias:
            self.q_bias = self.k_bias = self.v_bias = None
        if not config.o_bias:
            self.o_bias = None

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        return linear(self.mix(x, frame), self.o_proj, self.o_bias)

    def mix(self, x: Tensor, frame: Frame) -> Tensor:
        """What the output projection reads: ``[B, T, D] -> [B, T, H d]``."""
        raise NotImplementedError(f"{type(self).__name__} does not define mix")

    def joint_weights(self) -> tuple[str, ...]:
        """Queries, keys and values."""
        return ("q_proj", "k_proj", "v_proj")

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[B, H, T, d]``, keys and values ``[B, G, T, d]``, before rotation."""
        heads = (*x.shape[:2], -1, self.head_dim)
        named = (("q_proj", "q_bias"), ("k_proj", "k_bias"), ("v_proj", "v_bias"))
        query, key, value = self.products(x, *named)
        if self.qk_norm_eps is not None:
            query = norm_heads(query, self.q_norm, self.qk_norm_eps, self.qk_norm_offset)
            key = norm_heads(key, self.k_norm, self.qk_norm_eps, self.qk_norm_offset)
        query, key, value = (part.view(heads).transpose(1, 2) for part in (query, key, value))
        return query, key, value

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

    def step(self, query: Tensor, key: Tensor, value: Tensor, layer: LayerCache, frame: Frame) -> tuple[Tensor, Tensor]:
        """A decode step: queries ``[B, H, 1, d]`` to the cache, keys and values ``[B, G, 1, d]`` put into it first.

        Outputs ``[B, G, H/G, d]`` and log-sum-exps ``[B, G, H/G]``.
        """
        assert frame.ends is not None
        layer.put(frame.ends, key=key.transpose(1, 2), value=value.transpose(1, 2))
        keys, values = (CachedPart(layer.entry(name), self.head_dim, per_unit=True) for name in ("key", "value"))
        grouped = query.reshape(len(query), self.n_kv_heads, -1, self.head_dim)
        return attend_cached(grouped, (keys,), values, frame, scale=self.multiplier)


def norm_heads(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """Queries or keys ``[B, T, H d]``, RMS-normalized over as many values as there are weights."""
    return rms_norm(x.unflatten(-1, (-1, len(weight))), weight, eps, offset).flatten(-2)


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
            if frame.ends is not None:
                return self.step(query, key, value, layer, frame)[0].flatten(1).unsqueeze(1)
            before = layer.length
            seen = layer.extend(key=key.transpose(1, 2), value=value.transpose(1, 2))
            key, value = seen["key"].transpose(1, 2), seen["value"].transpose(1, 2)
        if isinstance(frame, PackedFrame):
            mixed = frame.attend(query, key, value, scale=self.multiplier, window=self.window)
            return mixed.transpose(1, 2).flatten(2)
        tokens, context = query.shape[2], key.shape[2]
        mask: Tensor | None = None
        causal = False
        if tokens > 1:  # a single token sees everything that its cache still holds
            if tokens == context and (self.window is None or context <= self.window):
                causal = True
            elif self.window is None:
                mask = causal_lower_right(tokens, context)
            else:
                mask = visible(tokens, context, self.window, x.device)
        padding = frame.hidden_keys(before, context)
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
        scores = turned_query @ turned_key.repeat_interleave(share, dim=1).transpose(2, 3)
        tokens = x.shape[1]
        hidden = ~visible(tokens, tokens, self.window, x.device)
        probabilities = scores.mul_(self.multiplier).masked_fill_(hidden, float("-inf")).softmax(dim=-1)
        del scores  # as large as the probabilities
        mixed = (probabilities @ value.repeat_interleave(share, dim=1)).transpose(1, 2).flatten(2)
        return Probe(
            x=x,
            query=query,
            key=key,
            value=value,
            probabilities=probabilities,
            mixed=mixed,
            output=linear(mixed, self.o_proj, self.o_bias),
            positions=frame.positions,
        )

    def _turn(self, query: Tensor, key: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
        if self.rotary is None:
            return query, key
        cos, sin = self.rotary(frame.positions)
        return rotate(query, cos, sin), rotate(key, cos, sin)
