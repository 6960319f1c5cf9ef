"""MLA spelled out head by head, with every key and value expanded: what the module must compute.

Axes: B batch, T tokens, D model, H query heads, d head width, e width of the rotary key, r rank of the latent.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from caramba_plugins_mla.attention import MultiHeadLatentAttention
from caramba_plugins_standard.rotary import cos_sin, rotate_reference
from torch import Tensor
from torch.nn.functional import linear, rms_norm

__all__ = ["mixed"]


def mixed(config: MultiHeadLatentAttention, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """What the output projection reads, for a text of positions 0, 1, ...: ``[B, T, D] -> [B, T, H d]``."""
    latent = linear(x, weights["kv_down_proj"])
    if config.latent_norm_eps is not None:
        latent = rms_norm(latent, (config.rank,), weights["latent_norm"], config.latent_norm_eps)
    query = linear(x, weights["q_proj"], weights.get("q_bias"))
    future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    heads = []
    for head in range(config.n_heads):
        mine = slice(head * config.head_dim, (head + 1) * config.head_dim)
        group = head // (config.n_heads // config.n_kv_heads)
        theirs = slice(group * config.head_dim, (group + 1) * config.head_dim)
        key = linear(latent, weights["k_up_proj"][theirs])
        value = linear(latent, weights["v_up_proj"][theirs])
        scores = query[:, :, mine] @ key.transpose(1, 2)
        if config.rope_dim:
            scores = scores + _rotary_scores(config, weights, x, head)
        probabilities = (scores * config.multiplier).masked_fill(future, float("-inf")).softmax(dim=-1)
        heads.append(probabilities @ value)
    return torch.cat(heads, dim=2)


def _rotary_scores(config: MultiHeadLatentAttention, weights: Mapping[str, Tensor], x: Tensor, head: int) -> Tensor:
    """``[B, T, T]``."""
    assert config.rope is not None
    mine = slice(head * config.rope_dim, (head + 1) * config.rope_dim)
    query = linear(x, weights["q_rope_proj"], weights.get("q_rope_bias"))[:, :, mine]
    key = linear(x, weights["k_rope_proj"], weights.get("k_rope_bias"))
    frequencies = torch.tensor(config.rope.frequencies(config.turned_width), dtype=torch.float64)[weights["pairs"]]
    cos, sin = cos_sin(frequencies, torch.arange(x.shape[1]), scaling=config.rope.attention_scaling)
    turned_query, turned_key = (rotate_reference(y[:, None], cos, sin)[:, 0] for y in (query, key))
    return turned_query @ turned_key.transpose(1, 2)
