"""Preconditioned conjugate gradients for systems that are known by their action alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from caramba_plugins_upcycle.threads import one_thread
from torch import Tensor

__all__ = ["conjugate_gradient", "ridge_solution"]


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


def ridge_solution(
    apply: Callable[[Tensor], Tensor],
    wanted: Tensor,
    start: Tensor,
    rows: Tensor,
    columns: Tensor,
    *,
    ridge: float,
    iterations: int,
    mask: Tensor | None = None,
) -> Tensor:
    """Solve ``apply(x) + s x = wanted + s start``, ``s`` being ``ridge`` times the mean eigenvalue of ``apply``.

    ``apply`` is about the Kronecker product of ``rows`` ``[..., r, r]`` and ``columns`` ``[n, n]``, by which the
    iterations are preconditioned.  Entries where ``mask`` is zero stay zero, as they are in ``start``.
    """
    row_values, row_vectors = _eigen(rows)
    column_values, column_vectors = _eigen(columns)
    scale = row_values[..., :, None] * column_values
    strength = ridge * scale.mean(dim=(-2, -1), keepdim=True)

    def within(x: Tensor) -> Tensor:
        return x if mask is None else x * mask

    def precondition(residual: Tensor) -> Tensor:
        inner = row_vectors.transpose(-1, -2) @ residual @ column_vectors / (scale + strength)
        return within(row_vectors @ inner @ column_vectors.T)

    return conjugate_gradient(
        lambda x: within(apply(x)) + strength * x,
        within(wanted) + strength * start,
        start,
        precondition,
        iterations=iterations,
    )


def _eigen(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, none below zero, and vectors of ``[..., n, n]``; computed in float64 on the CPU."""
    with one_thread():
        values, vectors = torch.linalg.eigh(symmetric.detach().cpu().double())
    return values.clamp_min(0).to(symmetric), vectors.to(symmetric)
