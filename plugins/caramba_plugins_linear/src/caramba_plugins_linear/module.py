"""Linear attention with exact neighbours in torch.

Axes: B batch, T tokens of this pass, S tokens seen, D model, H query heads, G key/value heads, m = H/G, d head width,
f features.
"""

from __future__ import annotations

import torch
from caramba_plugins_standard.gqa_module import GroupedAttentionModule
from caramba_plugins_standard.rotary import rotate
from torch import Tensor
from torch.nn import functional as F

from caramba_core.nn.cache import LayerCache
from caramba_core.nn.frame import Frame
from caramba_plugins_linear.attention import LinearAttention
from caramba_plugins_linear.far import linear_attention
from caramba_plugins_linear.near import mix_near

__all__ = ["LinearAttentionModule"]


class LinearAttentionModule(GroupedAttentionModule):
    """``[B, T, D] -> [B, T, D]``; ``tests/linear_reference.py`` spells it out.

    The far tokens of position ``t`` are those up to ``t - window``: causal linear attention over keys and values that
    come ``window`` tokens late.
    """

    config: LinearAttention
    q_map: Tensor
    k_map: Tensor
    q_map_bias: Tensor
    k_map_bias: Tensor

    def mix(self, x: Tensor, frame: Frame) -> Tensor:
        """What the output projection reads: ``[B, T, D] -> [B, T, H d]``."""
        if frame.ends is not None:
            return self._step(x, frame)
        config = self.config
        layer = None if frame.cache is None else frame.cache.layer(self.site, frame.application)
        before = 0 if layer is None else layer.length
        heads, key, value = self.project(x)
        query = heads.unflatten(1, (config.n_kv_heads, -1))  # [B, G, m, T, d]
        late_key, late_value = self._late(key, value, frame.positions, layer, before)
        features = self._query_features(query, before)  # logarithms
        near = None
        if config.held:
            near = self._near(query, key, value, frame.positions, layer, before)
        return self._mixed(features, self._key_features(late_key, before), late_value, near, layer).to(x.dtype)

    def _mixed(
        self,
        features: Tensor,
        shares: Tensor,
        late_value: Tensor,
        near: tuple[Tensor, Tensor] | None,
        layer: LayerCache | None,
    ) -> Tensor:
        """The far part from the layer's state, which it moves on, and the near part, divided by both denominators.

        Features ``[B, G, m, T, f]`` in logarithms, shares ``[B, G, T, f]`` and values ``[B, G, T, d]`` of the late
        tokens, ``near`` as of :func:`mix_near`: ``[B, T, H d]``.
        """
        top = features.detach().amax(-1, keepdim=True)
        if near is not None:
            top = torch.maximum(top, near[1])
        state = None if layer is None else layer.tensors["state"]
        far, summed = linear_attention(
            (features - top).exp().to(late_value.dtype), shares.to(late_value.dtype), _with_ones(late_value), state
        )
        if state is not None:
            state.copy_(summed)
        both = far if near is None else near[0] * (near[1] - top).exp().to(near[0].dtype) + far
        wide = both.to(torch.promote_types(both.dtype, torch.float32))
        mixed = wide[..., :-1] / wide[..., -1:].clamp_min(torch.finfo(wide.dtype).tiny)
        return mixed.flatten(1, 2).transpose(1, 2).flatten(2)

    def _step(self, x: Tensor, frame: Frame) -> Tensor:
        """A decode step: the token that this one overwrites in the window's ring is the late one."""
        config = self.config
        assert frame.cache is not None and frame.ends is not None
        layer = frame.cache.layer(self.site, frame.application)
        heads, key, value = self.project(x)
        query = heads.unflatten(1, (config.n_kv_heads, -1))  # [B, G, m, 1, d]
        text = (frame.ends - 1)[:, None, None, None]
        late_key, late_value = key, value
        if config.window:
            row = torch.arange(len(x), device=x.device)
            late_key, late_value = (
                entry.decode(*(plane[row, entry.place(frame.ends - 1)][:, None] for plane in entry.planes.values()))
                .transpose(1, 2)
                .to(x.dtype)
                for entry in map(layer.entry, ("key", "value"))
            )
            if self.rotary is not None:
                cos, sin = self.rotary(frame.positions - config.window)
                late_key = rotate(late_key, cos, -sin) / self.rotary.scaling**2
        features = self._logs(query).masked_fill(text[..., None] < config.held, float("-inf"))
        shares = self._shares(late_key).masked_fill(text - config.window < config.sinks, 0.0)
        near = self._near_step(query, key, value, layer, frame) if config.held else None
        return self._mixed(features, shares, late_value, near, layer).to(x.dtype)

    def _near_step(
        self, query: Tensor, key: Tensor, value: Tensor, layer: LayerCache, frame: Frame
    ) -> tuple[Tensor, Tensor]:
        """:func:`mix_near` of a decode step, over all places of the cache."""
        config = self.config
        assert frame.ends is not None
        to_sinks = query
        if self.rotary is not None:
            cos, sin = self.rotary(frame.positions)
            far_cos, far_sin = self.rotary(frame.positions.clamp(max=config.held - 1))
            to_sinks = rotate(query, far_cos.unsqueeze(-3), far_sin.unsqueeze(-3))
            query, key = rotate(query, cos.unsqueeze(-3), sin.unsqueeze(-3)), rotate(key, cos, sin)
        layer.put(frame.ends, key=key.transpose(1, 2), value=value.transpose(1, 2))
        keys, values = (
            entry.decode(*entry.planes.values()).transpose(1, 2)[:, :, None]
            for entry in map(layer.entry, ("key", "value"))
        )
        first = keys[..., : config.sinks, :].transpose(3, 4)
        scores = torch.cat([to_sinks @ first, query @ keys[..., config.sinks :, :].transpose(3, 4)], dim=-1)
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32)) * config.multiplier
        held = torch.arange(keys.shape[3], device=query.device) < frame.ends[:, None]
        wide = wide.masked_fill(~held[:, None, None, None], float("-inf"))
        top = wide.amax(-1, keepdim=True)
        return (wide - top).exp().to(values.dtype) @ _with_ones(values), top

    def _near(
        self, query: Tensor, key: Tensor, value: Tensor, positions: Tensor, layer: LayerCache | None, before: int
    ) -> tuple[Tensor, Tensor]:
        """The exact part, and the highest score of each row; this pass's keys and values go into the cache."""
        to_sinks = query
        if self.rotary is not None:
            cos, sin = self.rotary(positions)
            start = positions[..., :1] - before
            far_cos, far_sin = self.rotary(positions.minimum(start + self.config.held - 1))
            to_sinks = rotate(query, far_cos.unsqueeze(-3), far_sin.unsqueeze(-3))
            query, key = rotate(query, cos.unsqueeze(-3), sin.unsqueeze(-3)), rotate(key, cos, sin)
        if layer is not None:
            seen = layer.extend(key=key.transpose(1, 2), value=value.transpose(1, 2))
            key, value = seen["key"].transpose(1, 2), seen["value"].transpose(1, 2)
        return mix_near(self.config, query, to_sinks, key, _with_ones(value), before)

    def _late(
        self, key: Tensor, value: Tensor, positions: Tensor, layer: LayerCache | None, before: int
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of the tokens that leave the window, one for each token of this pass: zeros where none does.

        Cached keys are turned back: a key map knows no positions.
        """
        config, tokens = self.config, key.shape[2]
        if layer is not None and layer.lossy and config.window:
            key, value = self._as_kept(key, value, positions, layer)
        held = min(before, config.held) - min(before, config.sinks)
        if held:
            assert layer is not None
            cached = layer.read_last("key", held).transpose(1, 2)
            if self.rotary is not None:
                cos, sin = self.rotary(positions[..., :1] + torch.arange(-held, 0, device=positions.device))
                cached = rotate(cached, cos, -sin) / self.rotary.scaling**2
            key = torch.cat([cached.to(key.dtype), key], dim=2)
            past = layer.read_last("value", held).transpose(1, 2)
            value = torch.cat([past.to(value.dtype), value], dim=2)
        missing = config.window - held
        late_key, late_value = (F.pad(x, (0, 0, missing, 0))[:, :, :tokens] for x in (key, value))
        return late_key, late_value

    def _as_kept(self, key: Tensor, value: Tensor, positions: Tensor, layer: LayerCache) -> tuple[Tensor, Tensor]:
        """This pass's tokens as the cache will give them back when they leave the window."""
        kept = layer.round_trip("value", value.transpose(1, 2)).transpose(1, 2).to(value.dtype)
        if self.rotary is None:
            return layer.round_trip("key", key.transpose(1, 2)).transpose(1, 2).to(key.dtype), kept
        cos, sin = self.rotary(positions)
        turned = layer.round_trip("key", rotate(key, cos, sin).transpose(1, 2)).transpose(1, 2)
        return (rotate(turned, cos, -sin) / self.rotary.scaling**2).to(key.dtype), kept

    def _query_features(self, query: Tensor, before: int) -> Tensor:
        """Logarithms ``[B, G, m, T, f]`` in float32 or wider; of tokens that have no far ones, minus infinity."""
        logs = self._logs(query)
        if before >= self.config.held:
            return logs
        index = torch.arange(before, before + query.shape[3], device=query.device)
        return logs.masked_fill((index < self.config.held)[:, None], float("-inf"))

    def _logs(self, query: Tensor) -> Tensor:
        """Logarithms of the features of queries ``[B, G, m, T, d]``: ``[B, G, m, T, f]`` in float32 or wider."""
        maps = (self.config.n_kv_heads, -1, self.config.features)
        offset = self.q_map_bias.view(maps)[:, :, None]
        logs = query @ self.q_map.view(*maps, self.config.head_dim).transpose(2, 3) + offset
        return logs.to(torch.promote_types(logs.dtype, torch.float32))

    def _key_features(self, key: Tensor, before: int) -> Tensor:
        """How far each late token belongs into each slot ``[B, G, T, f]``; nowhere, if it is read exactly for ever."""
        shares = self._shares(key)
        if before >= self.config.held:
            return shares
        index = torch.arange(before, before + key.shape[2], device=key.device) - self.config.window
        return shares.masked_fill((index < self.config.sinks)[:, None], 0.0)

    def _shares(self, key: Tensor) -> Tensor:
        """How far keys ``[B, G, T, d]`` belong into each slot: ``[B, G, T, f]`` in float32 or wider."""
        logs = key @ self.k_map.transpose(1, 2) + self.k_map_bias[:, None]
        return logs.to(torch.promote_types(logs.dtype, torch.float32)).softmax(dim=-1)


def _with_ones(value: Tensor) -> Tensor:
    """A one beside each value adds up the denominator: ``[..., d] -> [..., d + 1]``."""
    return F.pad(value, (0, 1), value=1.0)
