"""A servable DBA as the ordinary grouped-query attention that computes the same.

Axes: D width of the residual stream, H query heads, G key/value heads, P groups, n pairs of a rotary key, c width of
a semantic key, w = 2n + c = r width of keys and values, d head width before the split.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from caramba_core.errors import InvalidValue
from caramba_plugins_dba.attention import DecoupledBottleneckAttention

__all__ = ["Absorbed", "absorbed", "frequencies_of"]


@attrs.frozen(kw_only=True, eq=False)
class Absorbed:
    """Grouped-query attention with ``P`` key/value heads of width ``w``, whose scores are multiplied by ``w ** -0.5``.

    ``weights``: ``q_proj`` ``[H w, D]``, ``k_proj`` and ``v_proj`` ``[P w, D]``, ``o_proj`` ``[D, H w]``, and
    ``q_bias`` ``[H w]``, ``k_bias`` ``[P w]``, ``o_bias`` ``[D]`` where there is something to add; float64.
    ``frequencies`` ``[w / 2]`` are radians a token of the pairs ``(j, j + w/2)``, zero where a pair does not turn.
    """

    heads: int
    groups: int
    width: int
    weights: Mapping[str, Tensor]
    frequencies: tuple[float, ...]


def absorbed(config: DecoupledBottleneckAttention, weights: Mapping[str, Tensor]) -> Absorbed:
    """Keys side by side, queries scaled, ``v_up_proj`` multiplied into ``o_proj``; ``weights`` by their declared names.

    Raises :class:`InvalidValue` where the config or its pairs are not servable.
    """
    if config.layout != "servable":
        raise InvalidValue(
            "layout", f"{config.layout} has no ordinary attention that is its equal", expected="servable"
        )
    wide = {name: tensor.detach().cpu().double() for name, tensor in weights.items() if name != "pairs"}
    made = {"q_proj": _queries(config, wide, "proj"), "k_proj": _keys(config, wide, "proj"), "v_proj": wide["v_proj"]}
    if {"q_geo_bias", "q_sem_bias"} & wide.keys():
        made["q_bias"] = _queries(config, wide, "bias").flatten()
    if "k_geo_bias" in wide:
        made["k_bias"] = _keys(config, wide, "bias").flatten()
    per_head = config.n_heads // config.n_kv_heads
    out = wide["o_proj"].unflatten(1, (config.n_heads, config.head_dim)).transpose(0, 1)  # [H, D, d]
    up = wide["v_up_proj"].unflatten(0, (config.n_kv_heads, config.head_dim)).repeat_interleave(per_head, dim=0)
    made["o_proj"] = (out @ up).transpose(0, 1).flatten(1)
    if {"v_bias", "o_bias"} & wide.keys():
        bias = wide.get("o_bias", torch.zeros(len(wide["o_proj"]), dtype=torch.float64))
        if "v_bias" in wide:  # probabilities sum to one
            each = wide["v_bias"].unflatten(0, (config.n_kv_heads, config.head_dim)).repeat_interleave(per_head, dim=0)
            bias = bias + (out @ each[..., None]).sum(0).squeeze(-1)
        made["o_bias"] = bias
    return Absorbed(
        heads=config.n_heads,
        groups=config.groups,
        width=config.v_dim // config.groups,
        weights=made,
        frequencies=frequencies_of(config, weights),
    )


def frequencies_of(config: DecoupledBottleneckAttention, weights: Mapping[str, Tensor]) -> tuple[float, ...]:
    """Those of :class:`Absorbed`, of a servable config; raises :class:`InvalidValue` where groups differ in theirs."""
    turning: tuple[float, ...] = ()
    if config.pairs:
        assert config.rope is not None
        first, *others = weights["pairs"].tolist()
        if any(row != first for row in others):
            raise InvalidValue(
                "groups",
                "the groups' rotary keys turn with different frequencies, and an ordinary attention has one list",
                hint="the start of layout: servable chooses one for all; groups: 1 needs none",
            )
        available = config.rope.frequencies(config.head_dim)
        turning = tuple(available[pair] for pair in first)
    return turning + (0.0,) * (config.sem_width // 2)


def _joined(geo: Tensor | None, sem: Tensor | None) -> Tensor:
    """Rotary ``[K, 2n, D]`` and semantic rows ``[K, c, D]`` of ``K`` heads in the half layout: ``[K w, D]``."""
    halves = [part.unflatten(1, (2, -1)) for part in (geo, sem) if part is not None]
    return torch.cat(halves, dim=2).flatten(0, 2)


def _rows(weights: Mapping[str, Tensor], name: str, kind: str, count: int) -> Tensor | None:
    """``[count, rows, D]`` of a weight, ``[count, rows, 1]`` of a bias, which is zero where there is none."""
    if f"{name}_proj" not in weights:
        return None
    rows = weights[f"{name}_proj"]
    if kind == "bias":
        rows = weights.get(f"{name}_bias", torch.zeros(len(rows), dtype=torch.float64))[:, None]
    return rows.view(count, -1, rows.shape[1])


def _keys(config: DecoupledBottleneckAttention, weights: Mapping[str, Tensor], kind: str) -> Tensor:
    return _joined(*(_rows(weights, name, kind, config.groups) for name in ("k_geo", "k_sem")))


def _queries(config: DecoupledBottleneckAttention, weights: Mapping[str, Tensor], kind: str) -> Tensor:
    """With everything that multiplies scores: scale, gates, temperatures, and the factor of a rotary embedding."""
    factor = torch.ones(config.n_heads, dtype=torch.float64) * config.multiplier * (config.v_dim / config.groups) ** 0.5
    if "temperature" in weights:
        factor = factor * weights["temperature"].exp()
    turn = 1.0 if config.rope is None else config.rope.attention_scaling**2
    gate = weights.get("gate", torch.zeros(config.n_heads, dtype=torch.float64))
    parts = []
    for name, balance in (("q_geo", 2 * (-gate).sigmoid() * turn), ("q_sem", 2 * gate.sigmoid())):
        rows = _rows(weights, name, kind, config.n_heads)
        parts.append(None if rows is None else rows * (factor * balance)[:, None, None])
    return _joined(*parts)
