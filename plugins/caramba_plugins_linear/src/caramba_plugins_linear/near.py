"""The exact part: scores of the first tokens and of the last ones, over all pairs or in a band.

Axes: B batch, G key/value heads, m query heads a key/value head, T tokens of this pass, S tokens seen, d head width, e
width of the values.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from caramba_plugins_linear.attention import LinearAttention, band, banded

__all__ = ["mix_near"]

_FORBIDDEN = float("-inf")


def mix_near(
    config: LinearAttention, query: Tensor, to_sinks: Tensor, key: Tensor, value: Tensor, before: int
) -> tuple[Tensor, Tensor]:
    """``sum_s exp(score_ts - top_t) value_s`` ``[B, G, m, T, e]`` and ``top`` ``[B, G, m, T, 1]``, the highest score.

    ``query`` ``[B, G, m, T, d]`` is turned for the last tokens, ``to_sinks`` for the first; ``key`` ``[B, G, S, d]``
    and ``value`` ``[B, G, S, e]`` are the first ``sinks`` tokens and then the last ones, this pass's at the end.
    ``before`` counts the tokens of the text before this pass.  No gradient flows to ``top``: it cancels.
    """
    tokens, seen = query.shape[3], key.shape[2]
    first = min(config.sinks, seen)
    scores, weighed = [], []
    if first:
        row = torch.arange(before, before + tokens, device=query.device)[:, None]
        ahead = torch.arange(first, device=query.device) > row
        scores.append(_scores(config, to_sinks, key[:, :, :first], ahead))
        weighed.append(value[:, :, None, :first])
    if config.window and before == 0 and banded(tokens, config.window):
        banded_scores, banded_values = _band(config, query, key, value)
        top = _top([*scores, banded_scores.flatten(3, 4)[:, :, :, :tokens]])
        block = banded_scores.shape[4]
        shift = pad(top, (0, 0, 0, -tokens % block)).view(*banded_scores.shape[:5], 1)
        mixed = _weigh(banded_scores - shift, banded_values).flatten(3, 4)[:, :, :, :tokens]
        return mixed + sum(_weigh(s - top, v) for s, v in zip(scores, weighed, strict=True)), top
    if config.window and seen > first:
        row = torch.arange(before, before + tokens, device=query.device)[:, None]
        column = torch.arange(before + tokens - seen + first, before + tokens, device=query.device)
        hidden = (column > row) | (column <= row - config.window)
        scores.append(_scores(config, query, key[:, :, first:], hidden))
        weighed.append(value[:, :, None, first:])
    top = _top(scores)
    mixed = torch.stack([_weigh(s - top, v) for s, v in zip(scores, weighed, strict=True)]).sum(0)
    return mixed, top


def _scores(config: LinearAttention, query: Tensor, key: Tensor, hidden: Tensor) -> Tensor:
    """``[B, G, m, T, S]`` in float32 or wider."""
    scores = query @ key[:, :, None].transpose(-1, -2)
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32)) * config.multiplier
    return wide.masked_fill(hidden, _FORBIDDEN)


def _band(config: LinearAttention, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Scores ``[B, G, m, n, C, 2 C]`` of each block of ``C`` tokens with itself and the one before; their values."""
    block = band(config.window)
    missing = -query.shape[3] % block
    query = pad(query, (0, 0, 0, missing))
    query = query.reshape(*query.shape[:3], -1, block, query.shape[4])
    pairs = []
    for x in (key, value):
        blocks = pad(x, (0, 0, block, missing))  # one empty block in front
        blocks = blocks.reshape(*blocks.shape[:2], -1, block, blocks.shape[3])
        pairs.append(torch.cat([blocks[:, :, :-1], blocks[:, :, 1:]], dim=3)[:, :, None])
    keys, values = pairs
    start = torch.arange(query.shape[3], device=query.device)[:, None, None] * block
    row = start + torch.arange(block, device=query.device)[:, None]
    column = start + torch.arange(2 * block, device=query.device) - block
    hidden = (column > row) | (column <= row - config.window) | (column < config.sinks)
    scores = query @ keys.transpose(-1, -2)
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32)) * config.multiplier
    return wide.masked_fill(hidden, _FORBIDDEN), values


def _top(scores: list[Tensor]) -> Tensor:
    """The highest score of each row: ``[B, G, m, T, 1]``."""
    return torch.stack([s.detach().amax(-1, keepdim=True) for s in scores]).amax(0)


def _weigh(scores: Tensor, value: Tensor) -> Tensor:
    return scores.exp().to(value.dtype) @ value
