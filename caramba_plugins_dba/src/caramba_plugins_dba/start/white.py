"""The control without calibration: moments as white inputs would give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from caramba_plugins_dba.attention import DecoupledBottleneckAttention

__all__ = ["white_moments"]


def white_moments(
    target: DecoupledBottleneckAttention, weights: Mapping[str, Tensor], moments: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Mapping[str, Tensor]]:
    """Keys and values as inputs of unit covariance give them, queries of unit covariance; attention as measured.

    Truncating by these moments is truncating the singular value decompositions of the weights.
    """
    key, value = weights["k_proj"].detach().cpu().double(), weights["v_proj"].detach().cpu().double()
    queries: dict[str, Any] = {"second": torch.eye(target.head_dim).double().expand(target.n_heads, -1, -1)}
    return {
        **moments,
        "query": {**moments["query"], **queries},
        "key": {"mean": torch.zeros(len(key)).double(), "second": key @ key.T},
        "attended_key": {"covariance": key @ key.T},
        "attended_value": {"mean": torch.zeros(len(value)).double(), "second": value @ value.T},
    }
