"""What each size of a DBA loses of its source's signal, for dividing a budget among layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from caramba_plugins_upcycle.transplant import SizeCurve
from torch import Tensor

from caramba_core.components import Attention, evolve
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.start.assemble import key_signal, moved_dims, value_weighting
from caramba_plugins_dba.start.linear_algebra import block_diagonal, spectrum
from caramba_plugins_dba.start.rotation import Rotation
from caramba_plugins_dba.start.selection import select

__all__ = ["size_curves"]

_STEP = 4
"""Cached values between two candidates of a latent."""


def size_curves(
    source: Attention,
    weights: Mapping[str, Tensor],
    target: DecoupledBottleneckAttention,
    moments: Mapping[str, Mapping[str, Tensor]],
    *,
    selection: str,
    fold: str,
) -> tuple[SizeCurve, ...]:
    """Rotary pairs, semantic keys and values, each with the attention that loses nothing else.

    The semantic keys' curve is that of the pairs which the target moves; their loss shows behind the pairs'.
    """
    rotation = Rotation.of(source, moments, fold)
    cost = rotation.costs(moments, selection)
    groups, half = target.n_kv_heads, target.head_dim // 2
    full_values = groups * target.head_dim
    room = groups * (target.head_dim - 2 * target.pairs)

    kept = torch.sort(cost, dim=-1, descending=True).values.sum(0).cumsum(0) / cost.sum()
    pairs = SizeCurve(
        field="geo_dim",
        sizes=tuple(2 * groups * count for count in range(1, half + 1)),
        lost=tuple((1.0 - kept).clamp_min(0).tolist()),
        alone=evolve(target, sem_dim=room, v_dim=full_values),
    )
    dims = moved_dims(select(cost, target.pairs), target.head_dim)
    gamma, spread = key_signal(target, rotation.moments(moments))
    moving = block_diagonal(list(torch.eye(target.head_dim, dtype=torch.float64)[dims]))
    semantic = _ranks(
        "sem_dim",
        spectrum(moving @ block_diagonal(gamma.unbind()) @ moving.T, moving @ spread @ moving.T),
        target.sem_dim,
        evolve(target, v_dim=full_values),
        after="geo_dim",
    )
    mean, second = moments["attended_value"]["mean"], moments["attended_value"]["second"]
    omega = value_weighting(target, weights["o_proj"].cpu().double())
    values = _ranks(
        "v_dim",
        spectrum(block_diagonal(omega.unbind()), second - torch.outer(mean, mean)),
        target.v_dim,
        evolve(target, geo_dim=full_values, sem_dim=0),
    )
    return pairs, semantic, values


def _ranks(field: str, shares: Tensor, own: int, alone: Attention, after: str | None = None) -> SizeCurve:
    kept = shares.cumsum(0)
    sizes = sorted({own, *range(_STEP, len(shares) + 1, _STEP)})
    lost = tuple(max(0.0, 1.0 - float(kept[size - 1])) for size in sizes)
    return SizeCurve(field=field, sizes=tuple(sizes), lost=lost, alone=alone, after=after)
