"""Orders of samples that are functions of an index, so that nothing is drawn ahead and no state is kept."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Final

import numpy as np

__all__ = ["Interleaving", "permuted"]

_PERIOD: Final = 1 << 32
_STEP: Final = 2_654_435_769
"""2^32 over the golden ratio: the multiples of no other number lie as evenly (Knuth, TAOCP 3, 6.4, theorem S)."""

_WORD: Final = (1 << 64) - 1


def permuted(index: int, count: int, keys: Sequence[int]) -> int:
    """Where a pseudo-random permutation of ``count`` numbers takes one of them.

    A Feistel network with a key of 64 bits per round permutes the numbers of ``2 n`` bits (Luby and Rackoff 1988: four
    rounds); it is applied until the result is below ``count`` (Black and Rogaway 2002, cycle walking), at most four
    times on average.
    """
    half = ((count - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        index = left << half | right
        if index < count:
            return index


def _mixed(x: int) -> int:
    """64 bits, each of which depends on all of ``x`` (the output function of SplitMix64)."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)


class Interleaving:
    """Samples of several parts in one order, in which each has its share as evenly as possible.

    Sample ``n`` is of the part in whose share of a circle its angle falls, ``n`` times the golden ratio's and a first
    one that ``seed`` draws.  How many of a part come before it is a sum of floors, which Euclid's algorithm takes.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        total = sum(weights)
        self._bounds = [round(_PERIOD * share / total) for share in (0.0, *accumulate(weights))]
        self._bounds[-1] = _PERIOD
        assert all(low < high for low, high in pairwise(self._bounds)), "a share is too small to come at all"
        self._first = int(np.random.default_rng(seed).integers(_PERIOD))

    def place(self, index: int) -> tuple[int, int]:
        """The part of sample ``index``, and how many of the samples before it are of this part."""
        if len(self._bounds) == 2:  # one part: nothing to compute
            return 0, index
        part = bisect_right(self._bounds, (index * _STEP + self._first) % _PERIOD) - 1
        low, high = (
            _sum_of_floors(index, _PERIOD, _STEP, self._first + _PERIOD - bound)
            for bound in self._bounds[part : part + 2]
        )
        return part, low - high


def _sum_of_floors(count: int, divisor: int, step: int, first: int) -> int:
    """The sum of ``(step i + first) // divisor`` over ``i`` from 0 to ``count - 1``, by Euclid's algorithm."""
    found = 0
    while count:
        found += count * (count - 1) // 2 * (step // divisor) + count * (first // divisor)
        step, first = step % divisor, first % divisor
        count, first = divmod(step * count + first, divisor)
        divisor, step = step, divisor
    return found
