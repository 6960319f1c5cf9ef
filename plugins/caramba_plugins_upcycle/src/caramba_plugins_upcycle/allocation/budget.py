"""Sizes by layer within a budget of cached values: those that lose least together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import torch

from caramba_plugins_upcycle.allocation.sensitivity import Sensitivity

__all__ = ["allocate", "part_of_the_way"]


def allocate(curves: Sequence[Sensitivity], budget: int) -> tuple[list[int], float]:
    """The size of each curve that loses least together, and that loss in nats; of equal losses the smaller sizes.

    One unit of a size is one cached value.  Exact: a multiple-choice knapsack, solved curve by curve for every part of
    the budget.  Raises :class:`ValueError` where the smallest sizes are too much already.
    """
    least = sum(curve.sizes[0] for curve in curves)
    if least > budget:
        raise ValueError(f"{least} cached values are the least that these attentions take")
    unit = math.gcd(*(size for curve in curves for size in curve.sizes))
    best = torch.zeros(budget // unit + 1, dtype=torch.float64)  # of the curves so far within 0, 1, 2, ... units
    choices = []
    for curve in curves:
        losses = torch.full((len(curve.sizes), len(best)), math.inf, dtype=torch.float64)
        for row, size, loss in zip(losses, curve.sizes, curve.losses, strict=True):
            row[size // unit :] = best[: max(len(best) - size // unit, 0)] + loss
        choices.append(losses.argmin(0))
        best = losses.amin(0)
    places, left = [], len(best) - 1
    for curve, choice in zip(reversed(curves), reversed(choices), strict=True):
        places.append(int(choice[left]))
        left -= curve.sizes[places[-1]] // unit
    chosen = [(curve.sizes[at], curve.losses[at]) for curve, at in zip(curves, reversed(places), strict=True)]
    return [size for size, _ in chosen], sum(loss for _, loss in chosen)


def part_of_the_way(
    curves: Sequence[Sensitivity], best: Sequence[int], budget: int, step: float
) -> tuple[list[int], float]:
    """Sizes between the manifest's own, scaled to the budget, and ``best``: ``step`` of the way; the predicted loss.

    Curves are measured near the sizes that the manifest has; the further away, the less they say.
    """
    scale = budget / sum(curve.own for curve in curves)
    near = []
    for curve, goal in zip(curves, best, strict=True):
        equal = curve.own * scale
        target = equal + step * (goal - equal)
        below = max((size for size in curve.sizes if size <= target), default=curve.sizes[0])
        above = min((size for size in curve.sizes if size >= target), default=curve.sizes[-1])
        places = sorted({curve.sizes.index(below), curve.sizes.index(above)})
        chosen = [(curve.sizes[place], curve.losses[place]) for place in places]
        sizes, losses = zip(*chosen, strict=True)
        near.append(attrs.evolve(curve, sizes=sizes, losses=losses))
    return allocate(near, budget)
