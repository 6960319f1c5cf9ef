"""All weights of an MLA from a teacher's weights and moments, in float64.

Axes: D width of the residual stream, H query heads, G key/value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from caramba_plugins_standard.rotary import mean_rotation
from caramba_plugins_upcycle.joint_latent import signals, solve
from caramba_plugins_upcycle.shared_rotary import Shared, choose, dearness
from caramba_plugins_upcycle.threads import one_thread
from caramba_plugins_upcycle.transplant import Calibrated, Started
from torch import Tensor

from caramba_plugins_mla.attention import MultiHeadLatentAttention
from caramba_plugins_mla.start.steady import steady

__all__ = ["common_pairs", "start"]

Moments = Mapping[str, Mapping[str, Tensor]]


@one_thread()
def start(source: Calibrated, target: MultiHeadLatentAttention, *, pairs: Sequence[int] | None = None) -> Started:
    """The weights that ``target`` declares, and what each step left out; ``pairs`` are those of the shared key."""
    report: dict[str, Any] = {}
    shared = _shared_key(target, source.moments, pairs, report)
    made = {**_rotary(target, source, shared), **_content(target, source, shared, report)}
    declared = target.weights(source.width)
    assert set(declared) == set(made), f"{sorted(set(declared) ^ set(made))}"
    return Started(weights=made, report=report)


@one_thread()
def common_pairs(layers: Sequence[tuple[MultiHeadLatentAttention, Moments]]) -> tuple[int, ...]:
    """The pairs ``0, step, 2 step, ...`` whose dearest components are worth most, added up over layers: ``[n]``."""
    worth = torch.stack([dearness(*_statistics(target, moments))[:, 0] for target, moments in layers]).sum(0)  # [P]
    count, available = layers[0][0].pairs, len(worth)
    steps = range(1, max((available - 1) // max(count - 1, 1), 1) + 1)
    best = max(steps, key=lambda step: float(worth[: count * step : step].sum()))
    return tuple(range(0, count * best, best))


def _statistics(target: MultiHeadLatentAttention, moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
    """What a shared key is chosen by: second moments of queries and keys, and the mean turn of each frequency."""
    assert target.rope is not None
    frequencies = torch.tensor(target.rope.frequencies(target.head_dim), dtype=torch.float64)
    rho = mean_rotation(moments["distance"]["attention"], frequencies)
    return moments["query"]["second"], moments["key"]["second"], rho


def _shared_key(
    target: MultiHeadLatentAttention, moments: Moments, pairs: Sequence[int] | None, report: dict[str, Any]
) -> Shared | None:
    if not target.pairs:
        return None
    shared = choose(*_statistics(target, moments), target.pairs, pairs=pairs)
    report["pairs"] = shared.pairs.tolist()
    report["rotation_lost"] = 1.0 - shared.kept
    return shared


def _rotary(target: MultiHeadLatentAttention, source: Calibrated, shared: Shared | None) -> dict[str, Tensor]:
    if shared is None:
        return {}
    heads = source.exact("q_proj").view(target.n_heads, target.head_dim, -1)
    made = {
        "pairs": shared.pairs,
        "q_rope_proj": (shared.query @ heads).flatten(0, 1),
        "k_rope_proj": shared.read @ source.exact("k_proj"),
    }
    if target.q_bias:
        bias = source.exact("q_bias").view(target.n_heads, -1, 1)
        made["q_rope_bias"] = (shared.query @ bias).flatten()
    if target.k_bias:
        made["k_rope_bias"] = shared.read @ source.exact("k_bias")
    return made


def _content(
    target: MultiHeadLatentAttention, source: Calibrated, shared: Shared | None, report: dict[str, Any]
) -> dict[str, Tensor]:
    """The latent of what the shared key leaves of the keys, and of the values."""
    groups, head_dim = target.n_kv_heads, target.head_dim
    half = groups * head_dim
    o_proj, moments = source.exact("o_proj"), source.moments
    normalized = target.latent_norm_eps is not None
    offset = target.o_bias or normalized
    signal = signals(
        *(o_proj, moments["query"]["second"], moments["key_value"]),
        multiplier=target.multiplier,
        centred=offset,
    )
    into = torch.eye(2 * half, dtype=torch.float64)  # from the teacher's [k; v] to what is left for the latent
    if shared is not None:
        into[:half, :half] = shared.rest
    keys, values = into @ signal.keys @ into.T, into @ signal.values @ into.T
    solved = solve(signal.gamma, signal.omega, keys, values, target.rank - normalized)
    report["keys_lost"], report["values_lost"] = solved.keys_lost, solved.values_lost

    factor = 1.0 if target.rope is None else target.rope.attention_scaling
    both = torch.cat([source.exact("k_proj"), source.exact("v_proj")])
    made = {
        "q_proj": source.exact("q_proj") * factor**2,
        "kv_down_proj": solved.down @ into @ both,
        "k_up_proj": solved.up[:half],
        "v_up_proj": solved.up[half:],
        "o_proj": o_proj,
    }
    if target.q_bias:
        made["q_bias"] = source.exact("q_bias") * factor**2
    if target.o_bias:
        made["o_bias"] = source.exact("o_bias")
    if offset:
        bias = torch.cat([source.exact("k_bias"), source.exact("v_bias")])
        missing = (signal.mean - solved.up @ (solved.down @ (into @ (signal.mean - bias))))[half:]
    if normalized:
        latent = steady(made["kv_down_proj"], moments["input"])
        report["norm_unsteady"] = latent.unsteady
        made["kv_down_proj"], made["latent_norm"] = latent.down, latent.norm
        made["k_up_proj"] = torch.cat([torch.zeros_like(missing)[:, None], made["k_up_proj"]], dim=1)
        made["v_up_proj"] = torch.cat([missing[:, None] / latent.level, made["v_up_proj"]], dim=1)
    elif offset:
        each_head = missing.view(groups, head_dim).repeat_interleave(target.n_heads // groups, dim=0)
        made["o_bias"] = made["o_bias"] + o_proj @ each_head.flatten()
    return made
