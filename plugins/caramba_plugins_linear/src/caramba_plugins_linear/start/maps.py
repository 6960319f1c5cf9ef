"""The maps of the far part: slots that get the attention that their tokens had.

A slot stands for keys that queries tell apart least.  A query weighs it by its centre, with rotary pairs at their mean
turn over the distances that far attention covers; an offset makes each head's mean attention to each slot what the
teacher's is.

Axes: N sequences, T tokens, G key/value heads, m query heads a key/value head, d head width, P = d/2 pairs, f slots.
"""

from __future__ import annotations

import torch
from caramba_plugins_upcycle.transplant import Started
from torch import Tensor

from caramba_plugins_linear.attention import LinearAttention
from caramba_plugins_linear.start.clusters import k_means
from caramba_plugins_linear.start.far_attention import FarAttention, far_attention

__all__ = ["fit"]

_RIDGE = 1e-6
_LEAST = 1e-3
"""Attention that every token counts with, relative to the mean: also slots that nobody read need a place."""
_SHARPNESS = 2.0
"""A slot whose centre is farther than another's by a scatter's width, squared, gets a share smaller by this exponent.
"""
_PRIOR = 0.1
"""Attention to a slot that is taken for granted before any is seen, relative to the mean slot's."""


def fit(config: LinearAttention, query: Tensor, key: Tensor) -> Started:
    """The maps for ``query`` ``[N, H, T, d]`` and ``key`` ``[N, G, T, d]`` of whole sequences, before rotation.

    Reports the share of attention that goes to far tokens, and the mean squared distance of their keys from the slots'
    centres over that from the mean of all.
    """
    far = far_attention(config, query, key)
    count, groups, *rest = key.shape
    query, key = query.double().reshape(count, groups, -1, *rest), key.double()
    root, inverse = _roots(_metric(config, query, far.turn))
    received = far.received.sum(2).transpose(0, 1).flatten(1)  # [G, N T]
    tiny = torch.finfo(received.dtype).tiny
    received = received + _LEAST * received.mean(-1, keepdim=True) + tiny
    points = key.transpose(0, 1).flatten(1, 2) @ root
    centres, place = k_means(points, received, config.features)
    own = centres.gather(1, place[..., None].expand_as(points))
    middle = (received[..., None] * points).sum(1, keepdim=True) / received.sum(1)[:, None, None]
    scatter, spread = _mean_square(points - own, received), _mean_square(points - middle, received)
    sharp = _SHARPNESS / torch.maximum(scatter, _RIDGE * spread + tiny)
    k_map, k_offset = 2 * sharp[:, None, None] * centres @ root, -sharp[:, None] * centres.square().sum(-1)
    q_map = (centres @ inverse)[:, None].expand(-1, query.shape[2], -1, -1)
    if far.turn is not None:
        q_map = _turned(q_map, far.turn[:, :, None])
    q_map = q_map * config.multiplier
    shares = (key @ k_map.transpose(1, 2) + k_offset[:, None]).softmax(dim=-1)  # [N, G, T, f]
    q_offset = _offset(config, query, far, q_map, shares)
    return Started(
        weights={
            "q_map": q_map.flatten(0, 1),
            "q_map_bias": q_offset.flatten(0, 1),
            "k_map": k_map,
            "k_map_bias": k_offset,
        },
        report={
            "far_attention": float(far.received.sum() / far.total.numel()),
            "keys_scatter": float((scatter / (spread + tiny)).mean()),
        },
    )


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """Pairs of ``x`` ``[..., d]`` multiplied by ``turn`` ``[..., P]``."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.complex(first.contiguous(), second.contiguous()) * turn
    return torch.cat([turned.real, turned.imag], dim=-1)


def _metric(config: LinearAttention, query: Tensor, turn: Tensor | None) -> Tensor:
    """What differences of keys do to scores: ``E[q q^T]`` over the queries ``[N, G, m, T, d]`` of each key/value head,
    turned back to where keys stand: ``[G, d, d]``.
    """
    if turn is not None:
        query = _turned(query, turn.conj()[:, :, None])
    folded = query.transpose(0, 1).flatten(1, 3)
    return folded.transpose(1, 2) @ folded * (config.multiplier**2 / folded.shape[1])


def _roots(metric: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square root and its inverse ``[G, d, d]``, with a ridge of 1e-6 of the mean diagonal."""
    small = metric.cpu()  # a device takes longer to start on matrices of this size than a processor to finish
    ridge = _RIDGE * small.diagonal(dim1=1, dim2=2).mean(-1) + torch.finfo(small.dtype).tiny
    eye = torch.eye(small.shape[-1], dtype=small.dtype)
    values, vectors = torch.linalg.eigh((small + small.transpose(1, 2)) / 2 + ridge[:, None, None] * eye)
    values = torch.maximum(values, _RIDGE * values[:, -1:])[:, None]
    back = vectors.transpose(1, 2)
    return ((vectors * values.sqrt()) @ back).to(metric.device), ((vectors * values.rsqrt()) @ back).to(metric.device)


def _mean_square(x: Tensor, weights: Tensor) -> Tensor:
    """``[G, N T, d]`` and ``[G, N T]`` -> ``[G]``."""
    return (weights * x.square().sum(-1)).sum(-1) / weights.sum(-1)


def _offset(config: LinearAttention, query: Tensor, far: FarAttention, q_map: Tensor, shares: Tensor) -> Tensor:
    """What to add to the logarithms of the query's features ``[G, m, f]``, so that the attention to each slot is
    right.
    """
    tokens = shares.shape[2]
    late = torch.nn.functional.pad(shares, (0, 0, config.window, 0))[:, :, :tokens]
    late = late.masked_fill((torch.arange(tokens, device=late.device) < config.held)[:, None], 0.0)
    filled = late.cumsum(dim=2)  # [N, G, T, f]: how many far tokens are in each slot
    wanted = (far.received @ shares).sum(0)  # [G, m, f]
    found = torch.zeros_like(wanted)
    for q, total, there in zip(query, far.total, filled, strict=True):
        found += ((q @ q_map.transpose(2, 3) - total[..., None]).exp() * there[:, None]).sum(2)
    tiny = torch.finfo(wanted.dtype).tiny
    prior = _PRIOR * wanted.mean(dim=-1, keepdim=True) + tiny
    ratio = (wanted.sum(-1, keepdim=True) + tiny) / (found.sum(-1, keepdim=True) + tiny)
    return ((wanted + prior) / (found + prior / ratio)).log()
