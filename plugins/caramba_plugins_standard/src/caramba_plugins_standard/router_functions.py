"""Routers in torch: scores and softmax in float32 or wider."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from caramba_plugins_standard.routers import SoftmaxRouter, TopKRouter

__all__ = ["softmax", "top_k"]


def softmax(router: SoftmaxRouter, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """``[B, T, D] -> [B, T, branches]``, summing to 1."""
    return _scores(x, weights).softmax(dim=-1).to(x.dtype)


def top_k(router: TopKRouter, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """``[B, T, D] -> [B, T, branches]``, summing to 1 over the ``k`` chosen branches and 0 elsewhere."""
    scores = _scores(x, weights)
    best, index = scores.topk(router.k, dim=-1)
    return torch.zeros_like(scores).scatter(-1, index, best.softmax(dim=-1)).to(x.dtype)


def _scores(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    scores = F.linear(x, weights["weight"])
    return scores.to(torch.promote_types(scores.dtype, torch.float32))
