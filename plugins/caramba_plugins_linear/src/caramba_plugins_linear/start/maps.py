"""The maps of the far part: slots that get the attention that their tokens had.

A slot stands for keys that queries tell apart least.  A query weighs it by its centre, with rotary pairs at their mean
turn over the distances that far attention covers; an offset makes each head's mean attention to each slot what the
teacher's is.

Axes: N sequences, T tokens, m query heads of one key/value head, d head width, P = d/2 pairs, f slots.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from caramba_core.nn.rotary import cos_sin, rotate_reference
from caramba_plugins_linear.attention import LinearAttention
from caramba_plugins_linear.start.clusters import k_means

__all__ = ["Maps", "fit"]

_RIDGE = 1e-6
_LEAST = 1e-3
"""Attention that every token counts with, relative to the mean: also slots that nobody read need a place."""
_SHARPNESS = 2.0
"""A slot whose centre is farther than another's by a scatter's width, squared, gets a share smaller by this exponent.
"""
_PRIOR = 0.1
"""Attention to a slot that is taken for granted before any is seen, relative to the mean slot's."""


@attrs.frozen(kw_only=True)
class Maps:
    """The maps of one key/value head and its query heads, and what is known of them.

    ``q_map`` ``[m, f, d]``, ``q_offset`` ``[m, f]``, ``k_map`` ``[f, d]``, ``k_offset`` ``[f]``; ``far`` is the share
    of attention that goes to far tokens, ``scatter`` the mean squared distance of their keys from the slots' centres
    over that from the mean of all.
    """

    q_map: Tensor
    q_offset: Tensor
    k_map: Tensor
    k_offset: Tensor
    far: float
    scatter: float


def fit(config: LinearAttention, query: Tensor, key: Tensor) -> Maps:
    """The maps for ``query`` ``[N, m, T, d]`` and ``key`` ``[N, T, d]`` of whole sequences, before rotation."""
    query, key = query.double(), key.double()
    attention, total = _far_attention(config, query, key)
    turn = _mean_turn(config, attention)  # [m, P]
    root, inverse = _roots(_metric(config, query, turn))
    received = attention.sum((1, 2)).flatten()
    received = received + _LEAST * received.mean() + torch.finfo(received.dtype).tiny
    points = key.flatten(0, 1) @ root
    centres, place = k_means(points, received, config.features)
    scatter = _mean_square(points - centres[place], received)
    spread = _mean_square(points - (received @ points) / received.sum(), received)
    sharp = _SHARPNESS / scatter.clamp_min(_RIDGE * spread + torch.finfo(spread.dtype).tiny)
    k_map, k_offset = 2 * sharp * centres @ root, -sharp * centres.square().sum(1)
    q_map = _turned(centres @ inverse, turn) * config.multiplier
    shares = (key @ k_map.T + k_offset).softmax(dim=-1)  # [N, T, f]
    return Maps(
        q_map=q_map,
        q_offset=_offset(config, query, attention, total, q_map, shares),
        k_map=k_map,
        k_offset=k_offset,
        far=float(attention.sum(-1).mean()),
        scatter=float(scatter / spread) if float(spread) > 0 else 0.0,
    )


def _far_attention(config: LinearAttention, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's attention to far tokens ``[N, m, T, T]`` (zeros elsewhere), and its log denominators
    ``[N, m, T, 1]``.
    """
    tokens = key.shape[1]
    key = key[:, None]
    if config.rope is not None:
        frequencies = torch.tensor(config.rope.frequencies(config.head_dim), dtype=torch.float64)
        turn = cos_sin(frequencies, torch.arange(tokens), scaling=config.rope.attention_scaling)
        query, key = rotate_reference(query, *turn), rotate_reference(key, *turn)
    row, column = torch.arange(tokens)[:, None], torch.arange(tokens)
    scores = (query @ key.transpose(2, 3) * config.multiplier).masked_fill(column > row, float("-inf"))
    total = scores.logsumexp(dim=-1, keepdim=True)
    near = (column < config.sinks) | (column > row - config.window)
    return (scores - total).exp().masked_fill(near, 0.0), total


def _mean_turn(config: LinearAttention, attention: Tensor) -> Tensor:
    """``E[exp(-i theta_p (t - s))]`` over each head's far attention: complex ``[m, P]``."""
    heads, tokens = attention.shape[1], attention.shape[2]
    if config.rope is None:
        return torch.ones(heads, -(-config.head_dim // 2), dtype=torch.complex128)
    frequencies = torch.tensor(config.rope.frequencies(config.head_dim), dtype=torch.float64)
    angle = torch.arange(tokens)[:, None] * frequencies
    wave = torch.polar(torch.ones_like(angle), angle)  # [T, P]
    mass = attention.sum(0)  # [m, T, T]
    turned = ((mass.to(wave.dtype) @ wave) * wave.conj()).sum(1)
    factor = config.rope.attention_scaling**2
    return factor * turned / mass.sum((1, 2))[:, None].clamp_min(torch.finfo(mass.dtype).tiny)


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """Pairs of ``x`` ``[..., d]`` multiplied by ``turn`` ``[m, P]``: ``[m, ..., d]``."""
    if bool((turn == 1).all()):
        return x.expand(len(turn), *x.shape)
    half = x.shape[-1] // 2
    pairs = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous())
    turned = pairs * turn.view(len(turn), *(1,) * (x.dim() - 1), half)
    return torch.cat([turned.real, turned.imag], dim=-1)


def _metric(config: LinearAttention, query: Tensor, turn: Tensor) -> Tensor:
    """What differences of keys do to scores: ``E[q q^T]`` over the head's queries, turned back to where keys stand."""
    folded = torch.cat([_turned(query[:, h], turn[h : h + 1].conj())[0].flatten(0, 1) for h in range(len(turn))])
    return folded.T @ folded * (config.multiplier**2 / len(folded))


def _roots(metric: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square root and its inverse, with a ridge of 1e-6 of the mean diagonal."""
    size = len(metric)
    ridge = _RIDGE * metric.diagonal().mean() + torch.finfo(metric.dtype).tiny
    values, vectors = torch.linalg.eigh((metric + metric.T) / 2 + ridge * torch.eye(size, dtype=metric.dtype))
    values = values.clamp_min(_RIDGE * values[-1])
    return (vectors * values.sqrt()) @ vectors.T, (vectors * values.rsqrt()) @ vectors.T


def _mean_square(x: Tensor, weights: Tensor) -> Tensor:
    return (weights * x.square().sum(1)).sum() / weights.sum()


def _offset(
    config: LinearAttention, query: Tensor, attention: Tensor, total: Tensor, q_map: Tensor, shares: Tensor
) -> Tensor:
    """What to add to the logarithms of the query's features ``[m, f]``, so that the attention to each slot is right."""
    late = torch.nn.functional.pad(shares, (0, 0, config.window, 0))[:, : shares.shape[1]]
    late = late.masked_fill((torch.arange(late.shape[1]) < config.held)[:, None], 0.0)
    filled = late.cumsum(dim=1)  # [N, T, f]: how many far tokens are in each slot
    wanted = (attention @ shares[:, None]).sum((0, 2))  # [m, f]
    logs = query @ q_map.transpose(1, 2)  # [N, m, T, f]
    found = ((logs - total).exp() * filled[:, None]).sum((0, 2))
    tiny = torch.finfo(wanted.dtype).tiny
    prior = _PRIOR * wanted.mean(dim=1, keepdim=True) + tiny
    ratio = (wanted.sum(1, keepdim=True) + tiny) / (found.sum(1, keepdim=True) + tiny)
    return ((wanted + prior) / (found + prior / ratio)).log()
