"""A latent that semantic keys and values are both read from, as it loses least of the layer's output.

Axes: D width of the residual stream, H query heads, G key/value heads, d head width, k = G d - geo_dim dimensions of
the keys that do not stay rotary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from caramba_plugins_upcycle.joint_latent import Signals, evenly, signals, solve
from torch import Tensor

from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.start.linear_algebra import block_diagonal
from caramba_plugins_dba.start.rotation import Rotation

__all__ = ["joint_signals", "of_joint_latent"]

Moments = Mapping[str, Mapping[str, Tensor]]


def joint_signals(
    target: DecoupledBottleneckAttention,
    teacher: Mapping[str, Tensor],
    moments: Moments,
    moved: tuple[Tensor, Tensor],
    key_price: float,
) -> tuple[Signals, Tensor]:
    """What weighs and measures errors of ``[k + G d]`` moved keys and values, and what makes these of all keys and
    values: ``[k + G d, 2 G d]``.
    """
    into, out = moved
    signal = signals(
        *(teacher["o_proj"], moments["query"]["second"], moments["key_value"]),
        multiplier=target.multiplier,
        centred=target.v_bias or target.o_bias,
        key_price=key_price,
    )
    whole = block_diagonal([into, torch.eye(into.shape[1], dtype=into.dtype)])
    reduced = Signals(
        gamma=out.T @ signal.gamma @ out,
        omega=signal.omega,
        keys=whole @ signal.keys @ whole.T,
        values=whole @ signal.values @ whole.T,
        mean=signal.mean,
    )
    return reduced, whole


def of_joint_latent(
    target: DecoupledBottleneckAttention,
    teacher: Mapping[str, Tensor],
    moments: Moments,
    moved: tuple[Tensor, Tensor],
    rotation: Rotation,
    key_price: float,
    report: dict[str, Any],
) -> tuple[dict[str, Tensor], Tensor]:
    """The latent, what reads it and the semantic queries; and what is left out of the mean values ``[G d]``."""
    signal, whole = joint_signals(target, teacher, moments, moved, key_price)
    solved = solve(signal.gamma, signal.omega, signal.keys, signal.values, target.v_dim)
    solved = evenly(solved, signal, whole @ moments["key_value"]["token_second"] @ whole.T)
    report["semantic_lost"], report["values_lost"] = solved.keys_lost, solved.values_lost
    rest = len(signal.gamma)
    key_up, value_up = solved.up[:rest], solved.up[rest:]
    down = solved.down @ whole
    made = {
        "q_sem_proj": teacher["q_proj"] * rotation.scaling,
        "v_proj": down @ torch.cat([teacher["k_proj"], teacher["v_proj"]]),
        "k_up_proj": moved[1] @ key_up,
        "v_up_proj": value_up,
        "o_proj": teacher["o_proj"],
    }
    size = len(value_up)
    biases = [teacher.get(name, torch.zeros(size, dtype=torch.float64)) for name in ("k_bias", "v_bias")]
    if target.q_bias:
        query = torch.zeros(len(teacher["q_proj"]), dtype=torch.float64)
        made["q_sem_bias"] = teacher.get("q_bias", query) * rotation.scaling
    mean = signal.mean if target.v_bias or target.o_bias else torch.zeros_like(signal.mean)
    return made, mean[size:] - value_up @ (down @ (mean - torch.cat(biases)))
