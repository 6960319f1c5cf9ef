"""Sliding-window attention with sink tokens, spelled out token by token: what the module must compute.

Axes: B batch, T tokens, D model, H query heads, d head width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from caramba_plugins_sliding_window.attention import SlidingWindowAttention
from caramba_plugins_standard.rotary import cos_sin, rotate_reference
from torch import Tensor
from torch.nn.functional import linear, rms_norm

__all__ = ["mixed"]


def mixed(config: SlidingWindowAttention, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """What the output projection reads, for a text of positions 0, 1, ...: ``[B, T, D] -> [B, T, H d]``."""
    shape = (*x.shape[:2], -1, config.head_dim)
    query, key, value = (
        linear(x, weights[f"{name}_proj"], weights.get(f"{name}_bias")).view(shape) for name in ("q", "k", "v")
    )
    if config.qk_norm_eps is not None:
        query = rms_norm(query, (config.head_dim,), weights["q_norm"], config.qk_norm_eps)
        key = rms_norm(key, (config.head_dim,), weights["k_norm"], config.qk_norm_eps)
    share = config.n_heads // config.n_kv_heads
    heads = []
    for head in range(config.n_heads):
        q, k, v = query[:, :, head], key[:, :, head // share], value[:, :, head // share]
        heads.append(torch.stack([_one(config, q, k, v, token) for token in range(x.shape[1])], dim=1))
    return torch.cat(heads, dim=2)


def _one(config: SlidingWindowAttention, query: Tensor, key: Tensor, value: Tensor, token: int) -> Tensor:
    """What one token's head mixes: ``[B, d]``."""
    seen = [s for s in range(token + 1) if s < config.sinks or s > token - config.window]
    scores = []
    for s in seen:
        distance = token - s
        if config.sink_positions == "cache" and s < config.sinks:
            distance = min(token, config.sinks + config.window - 1) - s
        turned = _turn(config, query[:, token], distance)
        scores.append((turned * key[:, s]).sum(-1) * config.multiplier)
    probabilities = torch.stack(scores, dim=1).softmax(dim=1)
    return (probabilities[..., None] * value[:, seen]).sum(1)


def _turn(config: SlidingWindowAttention, query: Tensor, distance: int) -> Tensor:
    """A query ``[B, d]`` turned by its distance from a key that stays as it is."""
    if config.rope is None:
        return query
    frequencies = torch.tensor(config.rope.frequencies(config.head_dim), dtype=torch.float64)
    cos, sin = cos_sin(frequencies, torch.tensor([distance]), scaling=config.rope.attention_scaling**2)
    return rotate_reference(query[:, None, None], cos, sin)[:, 0, 0]
