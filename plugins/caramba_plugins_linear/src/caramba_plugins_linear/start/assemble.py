"""All weights of a linear attention from a teacher's weights and some sequences.

Axes: H query heads, G key/value heads, d head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from caramba_plugins_upcycle.transplant import Started
from torch import Tensor

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
    maps = fit(target, sequences["query"], sequences["key"])
    made["q_map"], made["q_map_bias"] = maps.q_map.flatten(0, 1), maps.q_offset.flatten(0, 1)
    made["k_map"], made["k_map_bias"] = maps.k_map, maps.k_offset
    report: dict[str, Any] = {"far_attention": maps.far, "keys_scatter": maps.scatter}
    return Started(weights=made, report=report)
