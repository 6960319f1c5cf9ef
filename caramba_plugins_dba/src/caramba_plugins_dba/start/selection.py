"""Which rotary pairs stay rotary.

Rotation by ``theta_p`` over the distance between query and key is a nuisance to a path without positions.  Where a head
attends near, or a pair turns slowly, hardly anything is lost without it.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["importance", "rotation_mean", "select"]


def rotation_mean(attention: Tensor, frequencies: Tensor) -> Tensor:
    """``rho_hp = E[exp(-i theta_p (t - s))]`` over each head's attention.

    ``attention`` ``[H, T]`` by distance (rows sum to one), ``frequencies`` ``[P]``; complex128 ``[H, P]``.
    """
    distance = torch.arange(attention.shape[-1], dtype=torch.float64)
    turned = torch.polar(
        torch.ones((), dtype=torch.float64).expand(len(distance), len(frequencies)).contiguous(),
        -distance[:, None] * frequencies.double(),
    )
    return attention.to(turned.dtype) @ turned


def importance(query_second: Tensor, key_second: Tensor, rho: Tensor, *, by: str = "rotation") -> Tensor:
    """What moving each pair to the semantic path costs, up to a constant: ``[G, P]``.

    ``I_gp = sum_{h in g} E|q_hp|^2 E|k_gp|^2 2 (1 - Re rho_hp)`` where the path without positions sees the pair as it
    is (``rotation``), with ``1 - |rho_hp|^2`` as the last factor where the queries are turned by the mean rotation
    (``fold``).  ``norm`` and ``frequency`` are controls: the energy alone, and the fastest pairs.  ``query_second``
    ``[H, d, d]``, ``key_second`` ``[G d, G d]``, ``rho`` complex ``[H, P]``.
    """
    heads, width, _ = query_second.shape
    groups = key_second.shape[0] // width
    query = _pair_energy(query_second.diagonal(dim1=-2, dim2=-1))  # [H, P]
    key = _pair_energy(key_second.diagonal().view(groups, width))  # [G, P]
    lost = {
        "rotation": 2.0 * (1.0 - rho.real),
        "fold": 1.0 - rho.abs() ** 2,
        "norm": torch.ones_like(query),
    }
    if by == "frequency":
        return torch.arange(width // 2, 0, -1, dtype=query.dtype).expand(groups, -1)
    return (query * lost[by]).view(groups, heads // groups, -1).sum(1) * key


def select(cost: Tensor, count: int) -> Tensor:
    """The ``count`` dearest pairs of each key/value head, ascending: int64 ``[G, count]``."""
    order = torch.argsort(cost, dim=-1, descending=True, stable=True)
    return order[:, :count].sort(dim=-1).values


def _pair_energy(diagonal: Tensor) -> Tensor:
    """``E|x_p|^2`` of pair ``(p, p + P)`` from a diagonal ``[..., d]``."""
    half = diagonal.shape[-1] // 2
    return diagonal[..., :half] + diagonal[..., half:]
