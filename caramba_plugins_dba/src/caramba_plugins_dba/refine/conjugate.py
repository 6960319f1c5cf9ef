"""Preconditioned conjugate gradients for systems that are known by their action alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["conjugate_gradient", "eigen"]


def conjugate_gradient(
    apply: Callable[[Tensor], Tensor],
    wanted: Tensor,
    start: Tensor,
    precondition: Callable[[Tensor], Tensor],
    *,
    iterations: int,
) -> Tensor:
    """Solve ``apply(x) = wanted`` from ``start``; ``apply`` is linear, symmetric and positive definite.

    The last two axes are one system; leading axes are systems of their own, solved side by side.
    """
    x = start
    residual = wanted - apply(x)
    towards = precondition(residual)
    direction = towards
    size = _dot(residual, towards)
    smallest = torch.finfo(size.dtype).tiny
    for _ in range(iterations):
        applied = apply(direction)
        step = size / _dot(direction, applied).clamp_min(smallest)
        x = x + step * direction
        residual = residual - step * applied
        towards = precondition(residual)
        before, size = size, _dot(residual, towards)
        direction = towards + size / before.clamp_min(smallest) * direction
    return x


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-2, -1), keepdim=True)


def eigen(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, none below zero, and vectors of ``[..., n, n]``; computed in float64 on the CPU."""
    values, vectors = torch.linalg.eigh(symmetric.detach().cpu().double())
    return values.clamp_min(0).to(symmetric), vectors.to(symmetric)
