"""Sizes of DBA for a cache of a given size; light.

The shares are those of the presets, which are measured (``docs/dba-record.md``): of a free layout 3/8 of the cached
values are rotary keys, 7/16 values and the rest semantic keys; of a servable one, whose values are as wide as its keys,
3/4 of the keys are rotary; a quarter of the cached values stand beside a joint latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from caramba_plugins_standard.gqa import GroupedAttention
from caramba_plugins_upcycle.transplant import CacheBudget

from caramba_core.components import Attention
from caramba_core.errors import InvalidValue

__all__ = ["proposed"]

_ROTARY_OF_KEYS: Final = 0.75
_ROTARY: Final = 0.375
_BESIDE_LATENT: Final = 0.25
_VALUES: Final = 0.4375
_WIDEST: Final = 128
"""Width of a key up to which heads share one; kernels of engines are made for 64, 96 and 128."""


def proposed(source: Attention, width: int, budget: CacheBudget) -> Mapping[str, Any]:
    """The fields of a DBA that caches at most the budget's share of what ``source`` does.

    Servable where the user asks for it, or where it is possible and leaves the choice; raises :class:`InvalidValue` for
    a budget that no layout fits.
    """
    assert isinstance(source, GroupedAttention)
    joint = budget.given.get("latent") == "joint"
    values = budget.values(source, width, entries=2 if joint else 3)
    turning = 0 if source.rope is None else sum(f != 0 for f in source.rope.frequencies(source.head_dim))
    groups = _groups(source, values)
    possible = budget.uniform and turning > 0 and source.qk_norm_eps is None and values // (2 * groups) >= 4
    if joint:
        sizes = _joint(source, values, turning)
    elif budget.given.get("layout", "servable" if possible else "free") == "servable":
        sizes = _servable(source, values, turning, groups)
    else:
        sizes = _free(source, values, turning)
    keys_biased = source.qkv_bias and (sizes["geo_dim"] > 0 or source.qk_norm_eps is not None)
    biases = {"q_bias": source.qkv_bias, "k_bias": keys_biased, "o_bias": True}
    return {**sizes, **{name: True for name, there in biases.items() if there}}


def _groups(source: GroupedAttention, values: int) -> int:
    """Groups of a servable layout: as few as keep keys narrow, each of two key/value heads or more if there are two."""
    heads = source.n_kv_heads
    mixing = [groups for groups in range(1, heads + 1) if heads % groups == 0 and (heads // groups > 1 or heads == 1)]
    widest = max(_WIDEST, 2 * source.head_dim)
    return next((groups for groups in mixing if values <= 2 * groups * widest), mixing[-1])


def _servable(source: GroupedAttention, values: int, turning: int, groups: int) -> dict[str, Any]:
    keys = _down(values // (2 * groups), 8 if values >= 64 * groups else 2)
    rotary = 2 * min(round(_ROTARY_OF_KEYS * keys / 2), turning * source.n_kv_heads // groups)
    if keys < 2:
        raise _too_small(values)
    sizes = {"sem_dim": groups * (keys - rotary), "geo_dim": groups * rotary, "v_dim": groups * keys}
    shared = {"layout": "servable", "geo_layout": "shared"}
    return {**sizes, **shared, **({"groups": groups} if groups > 1 else {})}


def _free(source: GroupedAttention, values: int, turning: int) -> dict[str, Any]:
    room, pair = source.n_kv_heads * source.head_dim, 2 * source.n_kv_heads
    rotary = pair * min(max(1, round(_ROTARY * values / pair)), turning)
    if rotary >= values:
        raise _too_small(values)
    share = _down(int(_VALUES * values), 4 if values >= 64 else 1)
    held = min(max(share, values - room, 1), values - rotary)  # keys do not outgrow the source's either
    return {"sem_dim": values - rotary - held, "geo_dim": rotary, "v_dim": held}


def _joint(source: GroupedAttention, values: int, turning: int) -> dict[str, Any]:
    every, step = source.n_kv_heads * source.head_dim, 8 if values >= 64 else 2
    wanted = max(step, _down(round(_BESIDE_LATENT * values), step)) if turning else 0
    rotary = min(wanted, 2 * turning * source.n_kv_heads, every - 2)
    if rotary >= values:
        raise _too_small(values)
    return {"geo_layout": "shared", "sem_dim": 0, "geo_dim": rotary, "v_dim": _down(values - rotary, step // 2)}


def _down(number: int, step: int) -> int:
    return number // step * step


def _too_small(values: int) -> InvalidValue:
    return InvalidValue(None, f"{values} cached values hold no rotary keys of all key/value heads beside the values")
