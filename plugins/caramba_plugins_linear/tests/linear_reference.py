"""Linear attention with exact neighbours, spelled out token by token: what the module must compute.

Axes: B batch, T tokens, D model, H query heads, d head width, f features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from caramba_plugins_linear.attention import LinearAttention
from caramba_plugins_standard.rotary import cos_sin, rotate_reference
from torch import Tensor
from torch.nn.functional import linear, rms_norm

__all__ = ["mixed"]


def mixed(config: LinearAttention, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """What the output projection reads, for a text of positions 0, 1, ...: ``[B, T, D] -> [B, T, H d]``."""
    shape = (*x.shape[:2], -1, config.head_dim)
    query, key, value = (
        linear(x, weights[f"{name}_proj"], weights.get(f"{name}_bias")).view(shape) for name in ("q", "k", "v")
    )
    if config.qk_norm_eps is not None:
        query = rms_norm(query, (config.head_dim,), weights["q_norm"], config.qk_norm_eps)
        key = rms_norm(key, (config.head_dim,), weights["k_norm"], config.qk_norm_eps)
    heads = []
    for head in range(config.n_heads):
        group = head // (config.n_heads // config.n_kv_heads)
        slots = linear(query[:, :, head], weights["q_map"][head], weights["q_map_bias"][head]).exp()
        shares = linear(key[:, :, group], weights["k_map"][group], weights["k_map_bias"][group]).softmax(dim=-1)
        tokens = []
        for token in range(x.shape[1]):
            each = []
            for s in range(token + 1):
                if s < config.sinks or s > token - config.window:
                    distance = min(token, config.held - 1) - s if s < config.sinks else token - s
                    turned = _turn(config, query[:, token, head], distance)
                    each.append(((turned * key[:, s, group]).sum(-1) * config.multiplier).exp())
                else:
                    each.append((slots[:, token] * shares[:, s]).sum(-1))
            weight = torch.stack(each, dim=1)[..., None]
            tokens.append((weight * value[:, : token + 1, group]).sum(1) / weight.sum(1))
        heads.append(torch.stack(tokens, dim=1))
    return torch.cat(heads, dim=2)


def _turn(config: LinearAttention, query: Tensor, distance: int) -> Tensor:
    """A query ``[B, d]`` turned by its distance from a key that stays as it is."""
    if config.rope is None:
        return query
    frequencies = torch.tensor(config.rope.frequencies(config.head_dim), dtype=torch.float64)
    cos, sin = cos_sin(frequencies, torch.tensor([distance]), scaling=config.rope.attention_scaling**2)
    return rotate_reference(query[:, None, None], cos, sin)[:, 0, 0]
