"""What each size of a DBA loses of its source's signal, for dividing a budget among layers."""

from __future__ import annotations

import torch
from caramba_plugins_upcycle import joint_latent
from caramba_plugins_upcycle.threads import one_thread
from caramba_plugins_upcycle.transplant import SizeCurve
from torch import Tensor

from caramba_core.components import Attention, evolve
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.start.assemble import key_signal, rotary_costs, rotary_part, value_weighting
from caramba_plugins_dba.start.case import StartCase
from caramba_plugins_dba.start.joint import joint_signals
from caramba_plugins_dba.start.linear_algebra import block_diagonal, spectrum

__all__ = ["size_curves"]

_STEP = 4
"""Cached values between two candidates of a latent."""


@one_thread()
def size_curves(case: StartCase) -> tuple[SizeCurve, ...]:
    """Rotary keys, semantic keys and values, or the latent of both, each with the attention that loses nothing else.

    Behind the rotary keys' curve the others' are those of what the target does not keep rotary.
    """
    target = case.target
    _, moved = rotary_part(case)
    every = target.n_kv_heads * target.head_dim
    room = every - target.geo_dim
    if target.latent == "joint":
        slack = (every + room - target.v_dim) // 2  # of what the source has beyond both sizes, half for each
        signal, _ = joint_signals(case, moved[0])
        return (
            _rotary(
                target,
                rotary_costs(case),
                most=min(target.geo_dim + slack, every - 1),
                alone=evolve(target, v_dim=every + room),
            ),
            _ranks(
                "v_dim", joint_latent.spectrum(signal), target.v_dim, target, after="geo_dim", most=target.v_dim + slack
            ),
        )
    rotary = _rotary(
        target,
        rotary_costs(case),
        most=every,
        alone=evolve(target, sem_dim=room, v_dim=every),
    )
    gamma, spread = key_signal(case)
    ((into, out),) = moved
    semantic = _ranks(
        "sem_dim",
        spectrum(out.T @ block_diagonal(gamma.unbind()) @ out, into @ spread @ into.T),
        target.sem_dim,
        evolve(target, v_dim=every),
        after="geo_dim",
    )
    mean, second = case.moments["attended_value"]["mean"], case.moments["attended_value"]["second"]
    omega = value_weighting(target, case.source.exact("o_proj"))
    values = _ranks(
        "v_dim",
        spectrum(block_diagonal(omega.unbind()), second - torch.outer(mean, mean)),
        target.v_dim,
        evolve(target, geo_dim=every, sem_dim=0),
    )
    return rotary, semantic, values


def _rotary(target: DecoupledBottleneckAttention, costs: Tensor, most: int, alone: Attention) -> SizeCurve:
    step = 2 * target.geo_parts
    sizes = range(step, most + 1, step)
    lost = (1.0 - costs.cumsum(0) / costs.sum()).clamp_min(0)
    return SizeCurve(field="geo_dim", sizes=tuple(sizes), lost=tuple(lost[: len(sizes)].tolist()), alone=alone)


def _ranks(
    field: str, shares: Tensor, own: int, alone: Attention, after: str | None = None, most: int | None = None
) -> SizeCurve:
    kept = shares.cumsum(0)
    sizes = sorted({own, *range(_STEP, (len(shares) if most is None else most) + 1, _STEP)})
    lost = tuple(max(0.0, 1.0 - float(kept[size - 1])) for size in sizes)
    return SizeCurve(field=field, sizes=tuple(sizes), lost=lost, alone=alone, after=after)
