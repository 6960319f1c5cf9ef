"""The start behind norms of queries and keys: both paths read what the source's norms give, which stay as they are.

Axes: H query heads, G key/value heads, d head width.
"""

from __future__ import annotations

from typing import Final

import attrs
import torch
from caramba_plugins_upcycle.transplant import Started

from caramba_core.components import evolve
from caramba_plugins_dba.start.assemble import start
from caramba_plugins_dba.start.case import StartCase

__all__ = ["start_behind_norms"]

_CARRIED: Final = ("q_proj", "k_proj", "q_norm", "k_norm", "q_bias", "k_bias")


def start_behind_norms(case: StartCase) -> Started:
    """As :func:`start` of a source whose inputs are its normalized queries ``[d]`` and keys ``[G d]`` themselves.

    Moments are of normalized queries and keys anyway.
    """
    source, target = case.source, case.target
    heads, keys = target.n_heads, target.n_kv_heads * target.head_dim
    seen = {name: tensor for name, tensor in source.weights.items() if name not in ("q_bias", "k_bias")}
    seen["q_proj"] = torch.eye(target.head_dim).repeat(heads, 1)
    seen["k_proj"] = torch.eye(keys)
    plain = evolve(target, qk_norm_eps=None, q_bias=False, k_bias=False)
    started = start(attrs.evolve(case, source=attrs.evolve(source, weights=seen), target=plain))
    carried = {name: source.exact(name) for name in target.weights(source.width) if name in _CARRIED}
    return Started(weights={**started.weights, **carried}, report=started.report)
