"""Sorting keys into slots: weighted k-means, deterministic."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["k_means"]

_ROUNDS = 12


def k_means(points: Tensor, weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Centres ``[count, d]`` of points ``[N, d]`` with weights ``[N]``, and the place of each point's centre ``[N]``.

    Starts as k-means++ does (each next centre is drawn by weight times squared distance) from a generator of its own,
    so that equal points give equal centres.  A centre that loses all its points stays where it was.
    """
    generator = torch.Generator().manual_seed(0)
    centres = points.new_empty(count, points.shape[1])
    nearest = torch.full((len(points),), float("inf"), dtype=points.dtype)
    draw = weights / weights.sum()
    for index in range(count):
        chosen = int(torch.multinomial(draw, 1, generator=generator))
        centres[index] = points[chosen]
        nearest = torch.minimum(nearest, (points - points[chosen]).square().sum(1))
        mass = weights * nearest
        total = mass.sum()
        draw = mass / total if float(total) > 0 else weights / weights.sum()
    for _ in range(_ROUNDS):
        place = torch.cdist(points, centres).argmin(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, place, points * weights[:, None])
        mass = torch.zeros(count, dtype=points.dtype).index_add_(0, place, weights)
        filled = mass > 0
        centres[filled] = sums[filled] / mass[filled, None]
    return centres, torch.cdist(points, centres).argmin(dim=1)
