"""All weights of a linear attention from a teacher's weights and some sequences.

Axes: H query heads, G key/value heads, m = H/G, d head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from caramba_core.transplant import Started
from caramba_plugins_linear.attention import LinearAttention
from caramba_plugins_linear.start.maps import fit

__all__ = ["start"]


def start(
    weights: Mapping[str, Tensor], target: LinearAttention, width: int, sequences: Mapping[str, Tensor]
) -> Started:
    """The source's projections and biases, and fitted maps."""
    declared = target.weights(width)
    made = {
        name: weights[name] if name in weights else torch.zeros(weight.shape)
        for name, weight in declared.items()
        if "_map" not in name
    }
    share = target.n_heads // target.n_kv_heads
    maps = [
        fit(target, sequences["query"][:, group * share : (group + 1) * share], sequences["key"][:, group])
        for group in range(target.n_kv_heads)
    ]
    made["q_map"] = torch.cat([one.q_map for one in maps])
    made["q_map_bias"] = torch.cat([one.q_offset for one in maps])
    made["k_map"] = torch.stack([one.k_map for one in maps])
    made["k_map_bias"] = torch.stack([one.k_offset for one in maps])
    report: dict[str, Any] = {
        "far_attention": sum(one.far for one in maps) / len(maps),
        "keys_scatter": sum(one.scatter for one in maps) / len(maps),
    }
    return Started(weights=made, report=report)
