"""Square roots and truncated factorizations of moments, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["basis", "block_diagonal", "roots", "spectrum"]

_RIDGE = 1e-6
_SMALLEST_EIGENVALUE = 1e-7


def roots(weighting: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square root of a positive semidefinite ``[n, n]``, and its inverse.

    A ridge of 1e-6 of the mean diagonal is added and eigenvalues are clamped at 1e-7 of the largest, so that directions
    nothing reads stay invertible.
    """
    size = weighting.shape[0]
    ridge = _RIDGE * weighting.diagonal().mean().clamp_min(torch.finfo(weighting.dtype).tiny)
    symmetric = (weighting + weighting.T) / 2 + ridge * torch.eye(size, dtype=weighting.dtype)
    values, vectors = torch.linalg.eigh(symmetric)
    values = values.clamp_min(_SMALLEST_EIGENVALUE * values[-1])
    return (vectors * values.sqrt()) @ vectors.T, (vectors * values.rsqrt()) @ vectors.T


def basis(weighting: Tensor, signal: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best rank-``rank`` reading of a signal whose error is weighed.

    For a signal with second moment ``signal`` ``[n, n]`` and an error weighed by ``weighting`` ``[n, n]``: ``down``
    ``[rank, n]`` and ``up`` ``[n, rank]`` such that ``up @ down`` loses least, and the share that it loses.  At full
    rank both are the identity.  Columns of ``up`` are orthonormal, so that the latent has the scale of the signal.
    """
    size = weighting.shape[0]
    if rank >= size:
        eye = torch.eye(size, dtype=weighting.dtype)
        return eye, eye, 0.0
    root, inverse = roots(weighting)
    values, vectors = torch.linalg.eigh(root @ signal @ root)
    kept = vectors[:, -rank:].flip(-1)
    kept = kept * _signs(kept)
    up, triangle = torch.linalg.qr(inverse @ kept)
    down = triangle @ (kept.T @ root)
    positive = values.clamp_min(0)
    lost = 1.0 - float(positive[-rank:].sum() / positive.sum().clamp_min(torch.finfo(values.dtype).tiny))
    return down, up, max(lost, 0.0)


def spectrum(weighting: Tensor, signal: Tensor) -> Tensor:
    """What each direction of :func:`basis` carries of the weighed signal, largest first; sums to one: ``[n]``."""
    root, _ = roots(weighting)
    values = torch.linalg.eigvalsh(root @ signal @ root).clamp_min(0).flip(0)
    shares: Tensor = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return shares


def _signs(vectors: Tensor) -> Tensor:
    """The sign that makes each column's largest entry positive: eigenvectors come without one."""
    largest = vectors.abs().argmax(dim=0, keepdim=True)
    return torch.where(vectors.gather(0, largest) < 0, -1.0, 1.0)


def block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """``G`` blocks ``[r, n] -> [G r, G n]``."""
    made: Tensor = torch.block_diag(*blocks)
    return made
