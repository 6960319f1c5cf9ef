"""All weights of a DBA from a teacher's weights and moments.

Axes: D width of the residual stream, H query heads, G key/value heads, d head width, P = d/2 pairs, n kept pairs,
k = 2 (P - n) moved dimensions of one key/value head, K = G k of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from caramba_plugins_upcycle.transplant import Started
from torch import Tensor

from caramba_core.components import Attention
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.start.linear_algebra import basis, block_diagonal
from caramba_plugins_dba.start.rotation import Rotation
from caramba_plugins_dba.start.selection import select

__all__ = ["geometric", "start"]

Moments = Mapping[str, Mapping[str, Tensor]]


def start(
    source: Attention,
    weights: Mapping[str, Tensor],
    target: DecoupledBottleneckAttention,
    width: int,
    moments: Moments,
    *,
    selection: str = "rotation",
    fold: str = "none",
) -> Started:
    """The weights that ``target`` declares, in float64, and what each step left out."""
    teacher = {name: tensor.detach().cpu().double() for name, tensor in weights.items()}
    report: dict[str, Any] = {}
    rotation = Rotation.of(source, moments, fold)
    pairs = _choose_pairs(target, moments, rotation, selection, report)
    made = {
        **geometric(target, teacher, pairs),
        **_semantic(target, teacher, moments, pairs, rotation, report),
        **_values(target, teacher, moments, report),
        **_neutral(target, width),
    }
    declared = target.weights(width)
    assert set(declared) == set(made), f"{sorted(set(declared) ^ set(made))}"
    return Started(weights=made, report=report)


def _choose_pairs(
    target: DecoupledBottleneckAttention,
    moments: Moments,
    rotation: Rotation,
    selection: str,
    report: dict[str, Any],
) -> Tensor:
    if not target.pairs:
        return torch.zeros(target.n_kv_heads, 0, dtype=torch.int64)
    cost = rotation.costs(moments, selection)
    pairs = select(cost, target.pairs)
    report["pairs"] = pairs.tolist()
    report["rotation_lost"] = 1.0 - float(cost.gather(1, pairs).sum() / cost.sum())
    return pairs


def _rows(dims: Tensor, head_dim: int, heads_per_row: int) -> Tensor:
    """Rows of a projection for every head: ``dims`` ``[G, k]`` of each key/value head -> ``[G * heads_per_row, k]``."""
    per_head = dims.repeat_interleave(heads_per_row, dim=0)
    return per_head + torch.arange(per_head.shape[0])[:, None] * head_dim


def _kept_dims(pairs: Tensor, head_dim: int) -> Tensor:
    """Dimensions of the kept pairs in the half layout: ``[G, 2n]``."""
    return torch.cat([pairs, pairs + head_dim // 2], dim=-1)


def moved_dims(pairs: Tensor, head_dim: int) -> Tensor:
    """Dimensions of all other pairs, in the half layout too: ``[G, k]``."""
    half = head_dim // 2
    keep = torch.zeros(pairs.shape[0], half, dtype=torch.bool).scatter(1, pairs, value=True)
    moved = torch.stack([torch.nonzero(~row).flatten() for row in keep])
    return torch.cat([moved, moved + half], dim=-1)


def geometric(target: DecoupledBottleneckAttention, teacher: Mapping[str, Tensor], pairs: Tensor) -> dict[str, Tensor]:
    """The rows of ``pairs`` ``[G, n]``, gathered."""
    if not target.pairs:
        return {}
    dims = _kept_dims(pairs, target.head_dim)
    query = _rows(dims, target.head_dim, target.n_heads // target.n_kv_heads).flatten()
    key = _rows(dims, target.head_dim, 1).flatten()
    made = {"pairs": pairs, "q_geo_proj": teacher["q_proj"][query], "k_geo_proj": teacher["k_proj"][key]}
    if target.q_bias:
        made["q_geo_bias"] = _bias(teacher, "q_bias", teacher["q_proj"].shape[0])[query]
    if target.k_bias:
        made["k_geo_bias"] = _bias(teacher, "k_bias", teacher["k_proj"].shape[0])[key]
    return made


def _semantic(
    target: DecoupledBottleneckAttention,
    teacher: Mapping[str, Tensor],
    moments: Moments,
    pairs: Tensor,
    rotation: Rotation,
    report: dict[str, Any],
) -> dict[str, Tensor]:
    """Semantic keys that lose least of the moved pairs' logits.

    The error of a logit is ``q . (k - k')``: the queries' second moment weighs the keys' error.  A constant key changes
    no softmax, so keys count by their covariance: half over all tokens, half under attention.
    """
    if not target.sem_dim:
        return {}
    groups, per_group, head_dim = target.n_kv_heads, target.n_heads // target.n_kv_heads, target.head_dim
    teacher, moments = rotation.weights(teacher), rotation.moments(moments)
    dims = moved_dims(pairs, head_dim)  # [G, k]
    moved = dims.shape[1]
    query_rows = _rows(dims, head_dim, per_group)  # [H, k]
    key_rows = _rows(dims, head_dim, 1).flatten()  # [K]
    gamma, spread = key_signal(target, moments, dims)

    if target.k_layout == "shared":
        down, up, lost = basis(block_diagonal(gamma.unbind()), spread, target.sem_dim)
        ups = up.view(groups, moved, -1)  # what each key/value head reads of the latent
    else:
        parts = []
        for g in range(groups):
            own = slice(g * moved, (g + 1) * moved)
            parts.append(basis(gamma[g], spread[own, own], target.sem_width))
        down = block_diagonal([part[0] for part in parts])
        ups = torch.stack([part[1] for part in parts])
        lost = sum(part[2] for part in parts) / groups
    report["semantic_lost"] = lost
    reads = ups.transpose(1, 2).repeat_interleave(per_group, dim=0) * rotation.scaling  # [H, c, k]
    made = {
        "q_sem_proj": (reads @ teacher["q_proj"][query_rows]).flatten(0, 1),
        "k_sem_proj": down @ teacher["k_proj"][key_rows],
    }
    if target.q_bias:
        bias = _bias(teacher, "q_bias", teacher["q_proj"].shape[0])[query_rows]
        made["q_sem_bias"] = (reads @ bias[..., None]).flatten()
    return made


def key_signal(target: DecoupledBottleneckAttention, moments: Moments, dims: Tensor) -> tuple[Tensor, Tensor]:
    """What weighs an error of the moved keys ``[G, k, k]``, and their spread ``[K, K]``; ``dims`` ``[G, k]``."""
    groups, per_group = target.n_kv_heads, target.n_heads // target.n_kv_heads
    key_rows = _rows(dims, target.head_dim, 1).flatten()  # [K]
    second = moments["query"]["second"]
    local = dims.repeat_interleave(per_group, dim=0)
    gamma = torch.stack([second[h][local[h]][:, local[h]] for h in range(target.n_heads)])
    gamma = gamma.view(groups, per_group, *gamma.shape[1:]).sum(1)  # [G, k, k]
    mean = moments["key"]["mean"]
    spread = moments["key"]["second"] - torch.outer(mean, mean)
    spread = (spread + moments["attended_key"]["covariance"]) / 2
    return gamma, spread[key_rows][:, key_rows]


def value_weighting(target: DecoupledBottleneckAttention, o_proj: Tensor) -> Tensor:
    """What weighs an error of the mixed values, from the source's ``o_proj`` ``[D, H d]``: ``[G, d, d]``."""
    groups, per_group, head_dim = target.n_kv_heads, target.n_heads // target.n_kv_heads, target.head_dim
    by_head = o_proj.view(len(o_proj), target.n_heads, head_dim).permute(1, 0, 2)  # [H, D, d]
    return (by_head.transpose(1, 2) @ by_head).view(groups, per_group, head_dim, head_dim).sum(1)


def _values(
    target: DecoupledBottleneckAttention, teacher: Mapping[str, Tensor], moments: Moments, report: dict[str, Any]
) -> dict[str, Tensor]:
    """Values that lose least of the layer's output, as attention mixes them.

    Centring is by what attention makes of the values, not by tokens: most of the mass may lie on one token.
    """
    groups, per_group, head_dim = target.n_kv_heads, target.n_heads // target.n_kv_heads, target.head_dim
    width = teacher["o_proj"].shape[0]
    by_head = teacher["o_proj"].view(width, target.n_heads, head_dim).permute(1, 0, 2)  # [H, D, d]
    omega = value_weighting(target, teacher["o_proj"])
    mean, spread = moments["attended_value"]["mean"], moments["attended_value"]["second"]
    if target.v_bias or target.o_bias:
        spread = spread - torch.outer(mean, mean)
    else:
        mean = torch.zeros_like(mean)
    bias = _bias(teacher, "v_bias", mean.shape[0])

    if target.v_layout == "latent":
        down, up, report["values_lost"] = basis(block_diagonal(omega.unbind()), spread, target.v_dim)
        offset = mean - up @ (down @ (mean - bias))
        made = {"v_proj": down @ teacher["v_proj"], "v_up_proj": up, "o_proj": teacher["o_proj"]}
        if target.v_bias:
            made["v_bias"], offset = offset, torch.zeros_like(offset)
    else:
        own = [slice(g * head_dim, (g + 1) * head_dim) for g in range(groups)]
        downs, ups, lost = zip(*(basis(omega[g], spread[i, i], target.v_width) for g, i in enumerate(own)), strict=True)
        report["values_lost"] = sum(lost) / groups
        down, up = block_diagonal(downs), block_diagonal(ups)
        made = {"v_proj": down @ teacher["v_proj"]}
        made["o_proj"] = (by_head @ torch.stack(ups).repeat_interleave(per_group, dim=0)).transpose(0, 1).flatten(1)
        offset = mean - up @ (down @ (mean - bias))
        if target.v_bias:
            made["v_bias"] = down @ bias
            offset = mean - up @ (down @ mean)
    if target.o_bias:
        each_head = offset.view(groups, head_dim).repeat_interleave(per_group, dim=0)
        made["o_bias"] = _bias(teacher, "o_bias", width) + teacher["o_proj"] @ each_head.flatten()
    return made


def _neutral(target: DecoupledBottleneckAttention, width: int) -> dict[str, Tensor]:
    """Gates and temperatures where they change nothing."""
    declared = target.weights(width)
    names = [name for name in ("gate", "gate_proj", "temperature") if name in declared]
    return {name: torch.zeros(declared[name].shape, dtype=torch.float64) for name in names}


def _bias(teacher: Mapping[str, Tensor], name: str, size: int) -> Tensor:
    """The teacher's bias, zeros where it has none."""
    return teacher[name] if name in teacher else torch.zeros(size, dtype=torch.float64)
