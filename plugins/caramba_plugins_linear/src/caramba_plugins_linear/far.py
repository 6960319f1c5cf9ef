"""The far part: causal linear attention in chunks, from a state and to a state.

Axes: B batch, G key/value heads, m query heads a key/value head, T tokens, f features, e width of the values.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from caramba_plugins_linear.attention import CHUNK

__all__ = ["linear_attention"]


def linear_attention(query: Tensor, key: Tensor, value: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """``sum_{s <= t} <query_t, key_s> value_s`` and the state ``sum_s key_s value_s^T`` after the last token.

    ``query`` ``[B, G, m, T, f]``, ``key`` ``[B, G, T, f]``, ``value`` ``[B, G, T, e]``, ``state`` ``[B, G, f, e]`` of
    earlier tokens.  Within a chunk the products are spelled out, between chunks the state carries them; states are
    summed in float32 or wider.
    """
    tokens = query.shape[3]
    chunk = min(CHUNK, tokens)
    missing = -tokens % chunk
    if missing:
        query, key, value = (pad(x, (0, 0, 0, missing)) for x in (query, key, value))
    count = (tokens + missing) // chunk
    batch, groups, share, _, features = query.shape
    query = query.view(batch, groups, share, count, chunk, features)
    key = key.view(batch, groups, count, chunk, features)
    value = value.view(batch, groups, count, chunk, -1)
    wide = torch.promote_types(value.dtype, torch.float32)
    sums = (key.transpose(3, 4) @ value).to(wide).cumsum(2)  # [B, G, n, f, e]
    first = torch.zeros_like(sums[:, :, :1]) if state is None else state.to(wide)[:, :, None]
    sums = sums + first
    before = torch.cat([first, sums[:, :, :-1]], dim=2)
    within = (query @ key[:, :, None].transpose(4, 5)).tril()
    mixed = within @ value[:, :, None] + query @ before[:, :, None].to(query.dtype)
    return mixed.flatten(3, 4)[:, :, :, :tokens], sums[:, :, -1]
