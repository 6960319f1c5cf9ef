"""Which rotary pairs stay rotary.

Rotation by ``theta_p`` over the distance between query and key is a nuisance to a path without positions.  Where a head
attends near, or a pair turns slowly, hardly anything is lost without it.  A constant in its place, folded into the
queries, can be nearer to it than none.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["folded", "importance", "select", "stand_in"]


def stand_in(rho: Tensor, fold: str) -> Tensor:
    """The constant ``c_hp`` that takes the rotation's place where a pair is moved: complex128 ``[H, P]``.

    One where queries stay as they are (``none``); ``rho`` itself, which loses least in the mean (``mean``), or its
    direction alone, which keeps the queries' size (``phase``).
    """
    if fold == "none":
        return torch.ones_like(rho)
    return rho if fold == "mean" else torch.polar(torch.ones_like(rho.real), rho.angle())


def folded(rows: Tensor, constant: Tensor) -> Tensor:
    """Rows of queries ``[H, d, ...]`` times the conjugate of their pair's constant ``[H, P]``.

    A rotated pair scores ``Re(conj(q) k exp(-i theta (t - s)))``, so a constant in place of the rotation moves to the
    query conjugated: on ``(p, p + P)`` the real matrix ``[[Re c, Im c], [-Im c, Re c]]``.
    """
    half = rows.shape[1] // 2
    shape = (*constant.shape, *(1,) * (rows.ndim - 2))
    real, imaginary = constant.real.view(shape), constant.imag.view(shape)
    first, second = rows[:, :half], rows[:, half:]
    return torch.cat([real * first + imaginary * second, real * second - imaginary * first], dim=1)


def importance(
    query_second: Tensor, key_second: Tensor, rho: Tensor, *, by: str = "rotation", constant: Tensor | None = None
) -> Tensor:
    """What moving each pair to the semantic path costs, up to a constant: ``[G, P]``.

    ``I_gp = sum_{h in g} E|q_hp|^2 E|k_gp|^2 E|exp(-i theta_p (t - s)) - c_hp|^2``, the last factor being ``2 (1 - Re
    rho_hp)`` without a fold (``constant`` 1, the default).  ``norm`` and ``frequency`` are controls: the energy alone,
    and the fastest pairs.  ``query_second`` ``[H, d, d]``, ``key_second`` ``[G d, G d]``, ``rho`` and ``constant``
    complex ``[H, P]``.
    """
    heads, width, _ = query_second.shape
    groups = key_second.shape[0] // width
    if by == "frequency":
        return torch.arange(width // 2, 0, -1, dtype=query_second.dtype).expand(groups, -1)
    query = _pair_energy(query_second.diagonal(dim1=-2, dim2=-1))  # [H, P]
    key = _pair_energy(key_second.diagonal().view(groups, width))  # [G, P]
    if by == "rotation":
        constant = torch.ones_like(rho) if constant is None else constant
        query = query * (1.0 - 2.0 * (constant.conj() * rho).real + constant.abs() ** 2)
    return query.view(groups, heads // groups, -1).sum(1) * key


def select(cost: Tensor, count: int) -> Tensor:
    """The ``count`` dearest pairs of each key/value head, ascending: int64 ``[G, count]``."""
    order = torch.argsort(cost, dim=-1, descending=True, stable=True)
    return order[:, :count].sort(dim=-1).values


def _pair_energy(diagonal: Tensor) -> Tensor:
    """``E|x_p|^2`` of pair ``(p, p + P)`` from a diagonal ``[..., d]``."""
    half = diagonal.shape[-1] // 2
    return diagonal[..., :half] + diagonal[..., half:]
