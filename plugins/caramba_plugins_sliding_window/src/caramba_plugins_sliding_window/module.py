"""Sliding-window attention with sink tokens in torch.

Axes: B batch, T tokens of this pass, S tokens seen, D model, H query heads, G key/value heads, d head width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from caramba_plugins_standard.decoding import merge_attention
from caramba_plugins_standard.gqa_module import GroupedAttentionModule
from caramba_plugins_standard.rotary import rotate
from caramba_plugins_standard.training.documents import PackedFrame
from torch import Tensor
from torch.nn import functional as F

from caramba_core.nn.frame import Frame
from caramba_plugins_sliding_window.attention import SlidingWindowAttention

__all__ = ["SlidingWindowModule"]


class SlidingWindowModule(GroupedAttentionModule):
    """``[B, T, D] -> [B, T, D]``; ``tests/sliding_window_reference.py`` spells it out."""

    config: SlidingWindowAttention

    def mix(self, x: Tensor, frame: Frame) -> Tensor:
        """What the output projection reads: ``[B, T, D] -> [B, T, H d]``."""
        if frame.ends is not None:
            return self._step(x, frame)
        config, tokens = self.config, x.shape[1]
        layer = None if frame.cache is None else frame.cache.layer(self.site, frame.application)
        before = 0 if layer is None else layer.length
        query, key, value = self.project(x)
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
        alone = layer is None or isinstance(frame, PackedFrame)
        if alone and (hidden := frame.hidden_keys(0, tokens)) is not None:
            return self._in_documents(query, to_sinks, key, value, hidden, frame.positions).transpose(1, 2).flatten(2)
        mask = None if tokens == 1 else self._visible(before, tokens, key.shape[2], x.device)
        if to_sinks is None:
            mixed = self.attend(query, key, value, mask, causal=mask is None and tokens > 1)
        elif before:
            mixed = self._apart(query, to_sinks, key, value, mask)
        else:
            mixed = self._fused_apart(query, to_sinks, key, value, mask)
        return mixed.transpose(1, 2).flatten(2)

    def _step(self, x: Tensor, frame: Frame) -> Tensor:
        """A decode step: where sinks are met by queries turned for them, those are attended to apart."""
        config = self.config
        assert frame.cache is not None and frame.ends is not None
        layer = frame.cache.layer(self.site, frame.application)
        query, key, value = self.project(x)
        to_sinks = query
        if self.rotary is not None:
            cos, sin = self.rotary(frame.positions)
            if config.near_sinks:
                to_sinks = rotate(query, *self.rotary(frame.positions.clamp(max=config.held - 1)))
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if self.rotary is None or not (config.near_sinks and config.sinks):
            return self.step(query, key, value, layer, frame)[0].flatten(1).unsqueeze(1)
        behind = replace(frame, starts=torch.full_like(frame.ends, config.sinks))
        near = self.step(query, key, value, layer, behind)
        groups = (len(query), self.n_kv_heads, -1, self.head_dim)
        keys, values = (
            entry.decode(*(plane[:, : config.sinks] for plane in entry.planes.values())).transpose(1, 2)
            for entry in map(layer.entry, ("key", "value"))
        )
        scores = to_sinks.reshape(groups) @ keys.transpose(2, 3)
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32)) * self.multiplier
        place = torch.arange(keys.shape[2], device=x.device)
        wide = wide.masked_fill((place >= frame.ends[:, None])[:, None, None], float("-inf"))
        sinks = (wide.softmax(dim=-1).to(values.dtype) @ values, wide.logsumexp(dim=-1))
        return merge_attention(near, sinks).flatten(1).unsqueeze(1)

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

    def _fused_apart(self, query: Tensor, to_sinks: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """One call of twice the width: sinks meet the queries turned for them, other keys the rest.

        Values are padded with zeros: with unequal widths the flash kernels step back to a path that is several times
        slower.
        """
        width, sinks = key.shape[3], self.config.sinks
        keys = torch.cat([F.pad(key[:, :, :sinks], (width, 0)), F.pad(key[:, :, sinks:], (0, width))], dim=2)
        return self.attend(torch.cat([query, to_sinks], dim=3), keys, F.pad(value, (0, width)), mask)[..., :width]

    def _in_documents(
        self, query: Tensor, to_sinks: Tensor | None, key: Tensor, value: Tensor, hidden: Tensor, positions: Tensor
    ) -> Tensor:
        """One call for documents that share a sequence: each has sinks of its own, at its first positions ``[B, T]``.

        ``hidden``, bool ``[B, T, T]``, are the tokens of other documents.
        """
        width, sink = key.shape[3], positions < self.config.sinks
        place = torch.arange(key.shape[2], device=key.device)
        near = place > place[:, None] - self.config.window
        mask = (torch.ones_like(hidden).tril() & ~hidden & (near | sink[:, None])).unsqueeze(1)
        if to_sinks is not None:
            is_sink = sink[:, None, :, None]
            key = torch.cat([key.masked_fill(is_sink, 0.0), key.masked_fill(~is_sink, 0.0)], dim=3)
            query, value = torch.cat([query, to_sinks], dim=3), F.pad(value, (0, width))
        return self.attend(query, key, value, mask)[..., :width]

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
