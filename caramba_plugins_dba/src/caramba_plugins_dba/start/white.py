"""The control without calibration: moments as white inputs would give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from caramba_plugins_upcycle.threads import one_thread
from caramba_plugins_upcycle.transplant import Calibrated
from torch import Tensor

from caramba_plugins_dba.attention import DecoupledBottleneckAttention

__all__ = ["white_moments"]


@one_thread()
def white_moments(source: Calibrated, target: DecoupledBottleneckAttention) -> dict[str, Mapping[str, Tensor]]:
    """Keys and values as inputs of unit covariance give them, queries of unit covariance; attention as measured.

    Truncating by these moments is truncating the singular value decompositions of the weights.
    """
    key, value, moments = source.exact("k_proj"), source.exact("v_proj"), source.moments
    queries: dict[str, Any] = {"second": torch.eye(target.head_dim).double().expand(target.n_heads, -1, -1)}
    return {
        **moments,
        "query": {**moments["query"], **queries},
        "key": {"mean": torch.zeros(len(key)).double(), "second": key @ key.T},
        "attended_key": {"covariance": key @ key.T},
        "attended_value": {"mean": torch.zeros(len(value)).double(), "second": value @ value.T},
    }
