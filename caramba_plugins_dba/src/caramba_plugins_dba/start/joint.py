"""A latent that semantic keys and values are both read from, as it loses least of the layer's output.

Axes: D width of the residual stream, H query heads, G key/value heads, d head width, k = G d - geo_dim dimensions of
the keys that do not stay rotary.
"""

from __future__ import annotations

import torch
from caramba_plugins_upcycle.joint_latent import Signals, evenly, signals, solve
from torch import Tensor

from caramba_plugins_dba.start.case import StartCase
from caramba_plugins_dba.start.linear_algebra import block_diagonal

__all__ = ["joint_signals", "of_joint_latent"]


def joint_signals(case: StartCase, moved: tuple[Tensor, Tensor]) -> tuple[Signals, Tensor]:
    """What weighs and measures errors of ``[k + G d]`` moved keys and values, and what makes these of all keys and
    values: ``[k + G d, 2 G d]``.
    """
    into, out = moved
    signal = signals(
        *(case.source.exact("o_proj"), case.moments["query"]["second"], case.moments["key_value"]),
        multiplier=case.target.multiplier,
        centred=case.target.v_bias or case.target.o_bias,
        key_price=case.key_price,
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


def of_joint_latent(case: StartCase, moved: tuple[Tensor, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The latent, what reads it and the semantic queries; and what is left out of the mean values ``[G d]``."""
    source, target = case.source, case.target
    signal, whole = joint_signals(case, moved)
    solved = solve(signal.gamma, signal.omega, signal.keys, signal.values, target.v_dim)
    solved = evenly(solved, signal, whole @ case.moments["key_value"]["token_second"] @ whole.T)
    case.report["semantic_lost"], case.report["values_lost"] = solved.keys_lost, solved.values_lost
    rest = len(signal.gamma)
    key_up, value_up = solved.up[:rest], solved.up[rest:]
    down = solved.down @ whole
    made = {
        "q_sem_proj": source.exact("q_proj") * case.rotation.scaling,
        "v_proj": down @ torch.cat([source.exact("k_proj"), source.exact("v_proj")]),
        "k_up_proj": moved[1] @ key_up,
        "v_up_proj": value_up,
        "o_proj": source.exact("o_proj"),
    }
    if target.q_bias:
        made["q_sem_bias"] = source.exact("q_bias") * case.rotation.scaling
    biases = torch.cat([source.exact("k_bias"), source.exact("v_bias")])
    mean = signal.mean if target.v_bias or target.o_bias else torch.zeros_like(signal.mean)
    return made, mean[len(value_up) :] - value_up @ (down @ (mean - biases))
