"""The joint latent of keys and values that loses least of a layer's output.

A latent ``c = D u`` of ``u = [k; v]`` gives keys ``U_k c`` and values ``U_v c``.  Keys err under one query's attention
(an error that all tokens share changes no softmax), values as attention mixes them, so each kind has a measure of its
own: ``C`` for keys, ``M`` for values, both ``[n, n]`` second moments of ``u``.  The loss is

    tr(Gamma E_k (I - U D) C (I - U D)^T E_k^T) + tr(Omega E_v (I - U D) M (I - U D)^T E_v^T)

with ``Gamma`` what queries make of an error in the keys and ``Omega`` what the output projection makes of one in the
values.  For equal measures it is one eigenproblem; from that start, ``U`` and ``D`` are solved for in turn, each
exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import torch
from torch import Tensor

__all__ = ["Joint", "solve"]

_RIDGE = 1e-6
_SMALLEST_EIGENVALUE = 1e-7
_ROUNDS = 30
_LEAST_GAIN = 3e-4
"""A round that takes less than this share off the loss is the last."""


@attrs.frozen(kw_only=True)
class Joint:
    """``down`` ``[r, n]``, ``up`` ``[n, r]``, and the shares of keys' and values' signal that are lost."""

    down: Tensor
    up: Tensor
    keys_lost: float
    values_lost: float


def solve(gamma: Tensor, omega: Tensor, keys: Tensor, values: Tensor, rank: int) -> Joint:
    """The latent of ``rank`` for weights ``gamma``, ``omega`` ``[n/2, n/2]`` and measures ``keys``, ``values``
    ``[n, n]``.

    Full rank gives the identity.
    """
    half, size = len(gamma), len(keys)
    if rank >= size:
        eye = torch.eye(size, dtype=keys.dtype)
        return Joint(down=eye, up=eye, keys_lost=0.0, values_lost=0.0)
    gamma, omega = _ridged(gamma), _ridged(omega)
    keys, values = _ridged(keys), _ridged(values)
    with _one_thread():
        down = _principal(torch.block_diag(gamma, omega), keys, values, rank)
        up, down = _in_turn(gamma, omega, keys, values, down)
    basis, triangle = torch.linalg.qr(up)
    signs = triangle.diagonal().sign()  # a factorization has none of its own
    up, down = basis * signs, signs[:, None] * (triangle @ down)
    error = torch.eye(size, dtype=keys.dtype) - up @ down
    return Joint(
        down=down,
        up=up,
        keys_lost=_share(gamma, (error @ keys @ error.T)[:half, :half], keys[:half, :half]),
        values_lost=_share(omega, (error @ values @ error.T)[half:, half:], values[half:, half:]),
    )


def _ridged(matrix: Tensor) -> Tensor:
    """Symmetric, with a ridge of 1e-6 of the mean diagonal: directions that nothing reads stay invertible."""
    ridge = _RIDGE * matrix.diagonal().mean().clamp_min(torch.finfo(matrix.dtype).tiny)
    return (matrix + matrix.T) / 2 + ridge * torch.eye(len(matrix), dtype=matrix.dtype)


def _principal(weight: Tensor, keys: Tensor, values: Tensor, rank: int) -> Tensor:
    """The start: principal components under one measure, made of each kind's own block and the mean of the rest."""
    half = len(weight) // 2
    signal = (keys + values) / 2
    signal[:half, :half], signal[half:, half:] = keys[:half, :half], values[half:, half:]
    spectrum, vectors = torch.linalg.eigh(weight)
    root = (vectors * spectrum.clamp_min(_SMALLEST_EIGENVALUE * spectrum[-1]).sqrt()) @ vectors.T
    _, components = torch.linalg.eigh(root @ signal @ root)
    principal: Tensor = components[:, -rank:].flip(-1).T @ root
    return principal


def _in_turn(gamma: Tensor, omega: Tensor, keys: Tensor, values: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """``U`` and ``D``, each the best for the other, until a round gains next to nothing.

    ``U`` is a regression.  The best ``D`` for given ``U`` is where the loss is flat:

        U_k^T Gamma U_k D C + U_v^T Omega U_v D M = U_k^T Gamma E_k C + U_v^T Omega E_v M

    Both pairs of symmetric matrices are made diagonal together, after which every entry stands alone.  For ``C`` and
    ``M`` that is done once, and ``d`` is ``D`` in that basis.
    """
    half = len(gamma)
    basis, inverse, c = _together(keys, values)
    key, value = inverse[:, :half], inverse[:, half:]
    d = down @ inverse.T
    total = float((gamma * keys[:half, :half]).sum() + (omega * values[half:, half:]).sum())
    explained = 0.0
    for _ in range(_ROUNDS):
        up_key, up_value = _regression(d, c, key), _regression(d, 1 - c, value)
        from_key, from_value = up_key.T @ gamma, up_value.T @ omega
        wanted = from_key @ key.T * c + from_value @ value.T * (1 - c)
        left, _, a = _together(from_key @ up_key, from_value @ up_value)
        d = left @ (left.T @ wanted / (a[:, None] * c + (1 - a)[:, None] * (1 - c)))
        before, explained = explained, float((wanted * d).sum())
        if explained - before <= _LEAST_GAIN * (total - explained):
            break
    return torch.cat([_regression(d, c, key), _regression(d, 1 - c, value)]), d @ basis.T


def _regression(d: Tensor, measure: Tensor, wanted: Tensor) -> Tensor:
    """The best reading of ``wanted`` ``[n, k]`` from the latent under a diagonal measure: ``[k, r]``."""
    weighed = d * measure
    reading: Tensor = torch.linalg.solve(weighed @ d.T, weighed @ wanted).T
    return reading


def _together(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``X``, its inverse and ``a`` with ``X^T one X = diag(a)`` and ``X^T other X = diag(1 - a)``."""
    lower = torch.linalg.cholesky(one + other)
    whitened = torch.linalg.solve_triangular(lower, one, upper=False)
    whitened = torch.linalg.solve_triangular(lower, whitened.T, upper=False)
    shares, vectors = torch.linalg.eigh((whitened + whitened.T) / 2)
    both = torch.linalg.solve_triangular(lower.T, vectors, upper=True)
    return both, vectors.T @ lower.T, shares.clamp(0, 1)


def _share(weight: Tensor, error: Tensor, signal: Tensor) -> float:
    return float((weight * error).sum() / (weight * signal).sum())


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices of this size are factorized sooner than a pool of threads is woken, let alone a pool that others use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
