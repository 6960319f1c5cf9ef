"""Bytes by layer within a budget: attentions, sizes and caches that lose least together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import attrs
import torch

from caramba_core.components import Attention, Storage, evolve
from caramba_core.errors import InvalidValue
from caramba_core.nn.cache import LayerCache
from caramba_plugins_upcycle.allocation.sensitivity import Measured, Sensitivity

__all__ = ["Choice", "Place", "divide", "held_bytes", "part_of_the_way"]

_MOST_UNITS: Final = 1 << 17
"""Parts that what is left of a budget is divided into, where bytes have no common divisor as large."""

_NEAR: Final = 2
"""Sizes below an aim that are looked at, beside the one above: bytes of blocks do not grow evenly with sizes."""


@attrs.frozen(kw_only=True)
class Choice:
    """One way to cache a layer: a candidate, its sizes, its storage; what it holds in bytes and loses in nats."""

    candidate: int
    sizes: Mapping[str, int]
    storage: Storage | None
    bytes: int
    loss: float


@attrs.frozen(kw_only=True)
class Place:
    """An attention that is chosen: what was measured of its candidates.

    Bytes are those of one sequence of ``context`` tokens, in ``applications`` caches, where what is stored as it was
    computed takes two a value.
    """

    width: int
    applications: int = 1
    context: int
    candidates: Sequence[Measured]
    storages: Sequence[Storage | None]

    def choices(self) -> list[Choice]:
        """All that are worth it: each loses less than every one of fewer bytes."""
        return _worth_it(
            choice
            for candidate, measured in enumerate(self.candidates)
            for storage in range(len(self.storages))
            for choice in self._sized(candidate, storage, measured.curves)
        )

    def near(self, choice: Choice, scale: float, step: float) -> list[Choice]:
        """Choices in the same storage whose sizes lie ``step`` of the way from ``scale`` times their own to these."""
        curves = []
        for curve in self.candidates[choice.candidate].curves:
            aim = curve.own * scale + step * (choice.sizes[curve.field] - curve.own * scale)
            below = [size for size in curve.sizes if size <= aim][-_NEAR:]
            above = [size for size in curve.sizes if size > aim][:1]
            kept = [(size, curve.losses[curve.sizes.index(size)]) for size in (*below, *above)]
            sizes, losses = zip(*kept, strict=True)
            curves.append(attrs.evolve(curve, sizes=sizes, losses=losses))
        return _worth_it(self._sized(choice.candidate, self.storages.index(choice.storage), curves))

    def _sized(self, candidate: int, storage: int, curves: Sequence[Sensitivity]) -> list[Choice]:
        """One candidate in one storage at every combination of sizes that is worth it."""
        measured, stored = self.candidates[candidate], self.storages[storage]
        loss = measured.rounded[storage] if curves else measured.divergence + measured.rounded[storage]
        own = self.bytes_of(measured.config, stored)
        found = [Choice(candidate=candidate, sizes={}, storage=stored, bytes=own, loss=loss)]
        for curve in curves:
            steps = []
            for size, lost in zip(curve.sizes, curve.losses, strict=True):
                try:
                    changed = evolve(measured.config, **{curve.field: size})
                except InvalidValue:
                    continue  # a size that the attention cannot have
                steps.append((size, self.bytes_of(changed, stored) - own, lost))
            found = _worth_it(
                attrs.evolve(
                    choice,
                    sizes={**choice.sizes, curve.field: size},
                    bytes=choice.bytes + more,
                    loss=choice.loss + lost,
                )
                for choice in found
                for size, more, lost in steps
            )
        return found

    def bytes_of(self, config: Attention, storage: Storage | None) -> int:
        """Bytes of a candidate at some sizes, in a storage or its own."""
        return self.applications * held_bytes(config, self.width, storage or config.cache, self.context)


def held_bytes(config: Attention, width: int, storage: Storage | None, context: int) -> int:
    """Bytes that an attention caches of one sequence, two for each value that is stored as it was computed."""
    layer = LayerCache(config.cache_spec(width), 1, torch.bfloat16, torch.device("meta"), storage)
    layer.reserve(context)
    return layer.bytes


def divide(choices: Sequence[Sequence[Choice]], budget: int) -> list[Choice]:
    """The choice of each place that loses least together; of equal losses that of fewer bytes.

    Exact: a multiple-choice knapsack, solved place by place for every part of the budget.  Raises :class:`ValueError`
    where the smallest choices are too much already.
    """
    least = [min(choice.bytes for choice in own) for own in choices]
    room = budget - sum(least)
    if room < 0:
        raise ValueError(f"{sum(least):,} bytes are the least that these attentions take")
    beyond = [[choice.bytes - smallest for choice in own] for own, smallest in zip(choices, least, strict=True)]
    unit = max(1, math.gcd(*(more for own in beyond for more in own)), -(-room // _MOST_UNITS))
    weights = [[-(-more // unit) for more in own] for own in beyond]
    best = torch.zeros(room // unit + 1, dtype=torch.float64)  # of the places so far within 0, 1, 2, ... units
    chosen = []
    for own, sizes in zip(choices, weights, strict=True):
        before, best = best, torch.full_like(best, math.inf)
        places = torch.zeros(len(best), dtype=torch.int64)
        for place, (choice, size) in enumerate(zip(own, sizes, strict=True)):
            if size < len(best):
                losses = before[: len(best) - size] + choice.loss
                better = losses < best[size:]
                best[size:] = torch.where(better, losses, best[size:])
                places[size:] = torch.where(better, place, places[size:])
        chosen.append(places)
    found, left = [], len(best) - 1
    for own, sizes, places in zip(reversed(choices), reversed(weights), reversed(chosen), strict=True):
        place = int(places[left])
        found.append(own[place])
        left -= sizes[place]
    return found[::-1]


def part_of_the_way(places: Sequence[Place], best: Sequence[Choice], budget: int, step: float) -> list[Choice]:
    """Sizes between the manifest's own, scaled to the budget, and ``best``: ``step`` of the way.

    Attentions and storages are those of ``best``.  Curves are measured near the sizes that the manifest has; the
    further away, the less they say.
    """
    own = [
        place.bytes_of(place.candidates[choice.candidate].config, choice.storage)
        for place, choice in zip(places, best, strict=True)
    ]
    sized = [bool(choice.sizes) for choice in best]
    fixed = sum(choice.bytes for choice, has in zip(best, sized, strict=True) if not has)
    scale = (budget - fixed) / max(1, sum(count for count, has in zip(own, sized, strict=True) if has))
    pairs = zip(places, best, sized, strict=True)
    return divide([place.near(choice, scale, step) if has else [choice] for place, choice, has in pairs], budget)


def _worth_it(choices: Iterable[Choice]) -> list[Choice]:
    """Those that lose less than every one of fewer or as many bytes, in the order of their bytes."""
    found: list[Choice] = []
    for choice in sorted(choices, key=lambda one: (one.bytes, one.loss)):
        if not found or choice.loss < found[-1].loss:
            found.append(choice)
    return found
