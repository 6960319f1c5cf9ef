"""The start behind norms of queries and keys: both paths read what the source's norms give, which stay as they are.

Axes: H query heads, G key/value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from caramba_plugins_upcycle.transplant import Started
from torch import Tensor

from caramba_core.components import Attention, evolve
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.start.assemble import start

__all__ = ["start_behind_norms"]

_CARRIED: Final = ("q_proj", "k_proj", "q_norm", "k_norm", "q_bias", "k_bias")


def start_behind_norms(
    source: Attention,
    weights: Mapping[str, Tensor],
    target: DecoupledBottleneckAttention,
    width: int,
    moments: Mapping[str, Mapping[str, Tensor]],
    **settings: Any,
) -> Started:
    """As :func:`start` of a source whose inputs are its normalized queries ``[d]`` and keys ``[G d]`` themselves.

    Moments are of normalized queries and keys anyway.
    """
    heads, keys = target.n_heads, target.n_kv_heads * target.head_dim
    seen = {name: tensor for name, tensor in weights.items() if name not in ("q_bias", "k_bias")}
    seen["q_proj"] = torch.eye(target.head_dim).repeat(heads, 1)
    seen["k_proj"] = torch.eye(keys)
    plain = evolve(target, qk_norm_eps=None, q_bias=False, k_bias=False)
    started = start(source, seen, plain, width, moments, **settings)
    carried = {}
    for name, weight in target.weights(width).items():
        if name in _CARRIED:
            zeros = torch.zeros(weight.shape)  # of a bias that the source does not have
            carried[name] = weights.get(name, zeros).detach().cpu().double()
    return Started(weights={**started.weights, **carried}, report=started.report)
