"""Prefill behind cached tokens: a chunk of new tokens to a long context, tile by tile.

Axes: B batch, T tokens of this pass, S tokens of the context, H query heads, G key/value heads, w width of queries and
keys, v width of values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

__all__ = ["attend_chunk", "too_many_scores"]

_TILE: Final = 8192
"""Cached tokens whose keys and values exist at a time."""

_SCORES: Final = 2**26
"""Scores that may exist at a time."""

_SMALLEST: Final = 64
"""Tokens of a tile at least, however many queries meet them."""


def too_many_scores(query: Tensor, context: int) -> bool:
    """Whether the scores of queries ``[B, ..., T, w]`` with ``context`` tokens should not be spelled out at once."""
    return query.shape[:-1].numel() * context > _SCORES


def attend_chunk(
    query: Tensor, tile: Callable[[int, int], tuple[Tensor, Tensor]], before: int, *, scale: float
) -> tuple[Tensor, Tensor]:
    """Causal attention of ``[B, H, T, w]`` to ``before`` earlier tokens and to themselves.

    Gives ``[B, H, T, v]`` and the log-sum-exp of the scores ``[B, H, T]`` in float32 or wider.  ``tile(first, last)``
    gives keys ``[B, G, n, w]`` and values ``[B, G, n, v]`` of tokens of the text: what a compressed cache expands to
    exists for a few thousand tokens at a time, and scores for few or, where a fused kernel takes them, none.
    """
    tokens = query.shape[2]
    size = _TILE if _fused(query) else max(_SMALLEST, min(_TILE, _SCORES // query.shape[:-1].numel()))
    earlier = None
    for first in range(0, before, size):
        earlier = _added(earlier, _attend(query, *tile(first, min(first + size, before)), scale))
    rows = []
    for first in range(0, tokens, size):  # among themselves: squares on the diagonal, and what is to their left
        last = min(first + size, tokens)
        row = _attend(query[:, :, first:last], *tile(before + first, before + last), scale, causal=True)
        if first:
            row = _added(_attend(query[:, :, first:last], *tile(before, before + first), scale), row)
        rows.append(row)
    among = tuple(torch.cat(parts, dim=2) for parts in zip(*rows, strict=True))
    mixed, total = _added(earlier, (among[0], among[1]))
    return mixed.to(query.dtype), total


def _added(one: tuple[Tensor, Tensor] | None, other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Attention to two sets of tokens: outputs ``[B, H, T, v]`` and log-sum-exps ``[B, H, T]``, in float32 or wider."""
    wide = other[0].to(other[1].dtype)
    if one is None:
        return wide, other[1]
    share = (other[1] - one[1]).sigmoid().unsqueeze(-1)
    return torch.lerp(one[0].to(wide.dtype), wide, share), torch.logaddexp(one[1], other[1])


def _fused(query: Tensor) -> bool:
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and query.shape[3] <= 256


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float, *, causal: bool = False) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of all pairs, or of those of a square that are causal."""
    if _fused(query):
        narrow = value.shape[3]
        width = -(-max(query.shape[3], narrow) // 8) * 8
        padded = (torch.nn.functional.pad(x, (0, width - x.shape[3])) for x in (query, key, value))
        out = torch.ops.aten._scaled_dot_product_flash_attention(*padded, 0.0, causal, False, scale=scale)
        return out[0][..., :narrow], out[1]
    groups = key.shape[1]
    grouped = query.unflatten(1, (groups, -1))
    scores = grouped @ key[:, :, None].transpose(3, 4)
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
    if causal:
        wide = wide.masked_fill(torch.ones_like(wide[0, 0, 0], dtype=torch.bool).triu(1), float("-inf"))
    mixed = wide.softmax(dim=-1).to(value.dtype) @ value[:, :, None]
    return mixed.flatten(1, 2), wide.logsumexp(dim=-1).flatten(1, 2)
