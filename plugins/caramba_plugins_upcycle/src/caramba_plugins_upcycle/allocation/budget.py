"""Sizes by layer within a budget: the next cached values go where they buy most."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import attrs

from caramba_plugins_upcycle.allocation.sensitivity import Sensitivity

__all__ = ["allocate", "part_of_the_way"]


def allocate(curves: Sequence[Sensitivity], budget: int) -> tuple[list[int], float]:
    """The size of each curve, and the predicted loss in nats.

    All start at their smallest size; then the step with the largest gain a cached value is taken, as long as it fits
    (each curve is first made convex, so that a step that only pays with the next one is taken with it).  One unit of a
    size is one cached value.  Raises :class:`ValueError` where the smallest sizes are too much already.
    """
    hulls = [_lower_hull(curve) for curve in curves]
    places = [0] * len(curves)
    left = budget - sum(hull[0][0] for hull in hulls)
    if left < 0:
        raise ValueError(f"{budget - left} cached values are the least that these attentions take")
    heap = [(-_gain(hull, 0), index) for index, hull in enumerate(hulls) if len(hull) > 1]
    heapq.heapify(heap)
    while heap:
        _, index = heapq.heappop(heap)
        hull, place = hulls[index], places[index]
        step = hull[place + 1][0] - hull[place][0]
        if step > left:
            continue  # later, cheaper steps of other curves may still fit
        left -= step
        places[index] = place + 1
        if place + 2 < len(hull):
            heapq.heappush(heap, (-_gain(hull, place + 1), index))
    chosen = [hull[place] for hull, place in zip(hulls, places, strict=True)]
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


def _lower_hull(curve: Sensitivity) -> list[tuple[int, float]]:
    """The points of a curve below which none of its chords passes, by size."""
    hull: list[tuple[int, float]] = []
    for point in zip(curve.sizes, curve.losses, strict=True):
        if hull and point[1] >= hull[-1][1]:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) > _slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def _gain(hull: list[tuple[int, float]], place: int) -> float:
    return -_slope(hull[place], hull[place + 1])
