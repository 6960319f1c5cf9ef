"""Dividing a budget of cached values: the arithmetic against every possibility."""

from __future__ import annotations

import itertools

import pytest
from attrs import evolve
from caramba_plugins_upcycle.allocation.budget import allocate, part_of_the_way
from caramba_plugins_upcycle.allocation.sensitivity import Sensitivity
from hypothesis import given
from hypothesis import strategies as st


def curve(field: str, sizes: list[int], losses: list[float], own: int = 1) -> Sensitivity:
    return Sensitivity(site="model.attention", field=field, own=own, sizes=tuple(sizes), losses=tuple(losses))


@st.composite
def falling(draw: st.DrawFn) -> Sensitivity:
    """Losses that fall in steps of any height, at sizes of any distance."""
    sizes = sorted(draw(st.sets(st.integers(1, 9), min_size=1, max_size=5)))
    losses = sorted(draw(st.lists(st.integers(0, 9), min_size=len(sizes), max_size=len(sizes))), reverse=True)
    return curve("v_dim", sizes, [float(loss) for loss in losses])


@given(st.lists(falling(), min_size=1, max_size=4), st.integers(0, 12))
def test_a_budget_is_divided_as_well_as_can_be(curves: list[Sensitivity], more: int) -> None:
    budget = sum(c.sizes[0] for c in curves) + more
    sizes, loss = allocate(curves, budget)
    assert sum(sizes) <= budget
    assert loss == sum(c.losses[c.sizes.index(size)] for c, size in zip(curves, sizes, strict=True))
    possible = itertools.product(*(range(len(c.sizes)) for c in curves))
    best = min(
        sum(c.losses[place] for c, place in zip(curves, places, strict=True))
        for places in possible
        if sum(c.sizes[place] for c, place in zip(curves, places, strict=True)) <= budget
    )
    assert loss == best


@st.composite
def convex(draw: st.DrawFn) -> Sensitivity:
    """Losses that fall ever more slowly, at equal steps of size one."""
    count = draw(st.integers(1, 5))
    falls = sorted(draw(st.lists(st.integers(0, 9), min_size=count - 1, max_size=count - 1)), reverse=True)
    losses = [float(sum(falls[place:])) for place in range(count)]
    return curve("v_dim", list(range(1, count + 1)), losses)


def test_a_step_that_pays_only_with_the_next_is_taken_with_it() -> None:
    late = curve("sem_dim", [1, 2, 3], [10.0, 10.0, 0.0])
    steady = curve("v_dim", [1, 2, 3], [6.0, 4.0, 3.0])
    assert allocate([late, steady], 4) == ([3, 1], 6.0)


def test_sizes_that_cost_more_step_by_step_leave_room_for_smaller_steps() -> None:
    pairs = curve("geo_dim", [6, 12], [9.0, 0.0])
    values = curve("v_dim", [4, 8], [2.0, 1.0])
    assert allocate([pairs, values], 14) == ([6, 8], 10.0)


def test_too_small_a_budget_names_the_least() -> None:
    with pytest.raises(ValueError, match="7 cached values are the least"):
        allocate([curve("a", [3, 4], [1.0, 0.0]), curve("b", [4], [0.0])], 6)


@given(st.lists(convex(), min_size=1, max_size=4), st.data(), st.integers(0, 8), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_part_of_the_way_stays_between_and_within_the_budget(
    curves: list[Sensitivity], data: st.DataObject, more: int, step: float
) -> None:
    budget = len(curves) + more
    own = [data.draw(st.sampled_from(c.sizes)) for c in curves]
    curves = [evolve(c, own=at) for c, at in zip(curves, own, strict=True)]
    best, _ = allocate(curves, budget)
    try:
        sizes, loss = part_of_the_way(curves, best, budget, step)
    except ValueError:  # equal shares of a small budget may be smaller than the smallest sizes
        assert any(at * budget / sum(own) < c.sizes[0] for c, at in zip(curves, own, strict=True))
        return
    assert sum(sizes) <= budget
    assert loss == sum(c.losses[c.sizes.index(size)] for c, size in zip(curves, sizes, strict=True))
    for at, goal, size in zip(own, best, sizes, strict=True):
        low, high = sorted((at * budget / sum(own), goal))
        assert low - 1 < size < high + 1


def test_all_the_way_is_the_optimum_and_none_of_it_the_manifest() -> None:
    curves = [curve("sem_dim", [2, 4, 6], [9.0, 3.0, 0.0], own=4), curve("v_dim", [2, 4, 6], [3.0, 1.0, 0.5], own=4)]
    assert part_of_the_way(curves, [6, 2], 8, step=1.0) == ([6, 2], 3.0)
    assert part_of_the_way(curves, [6, 2], 8, step=0.0) == ([4, 4], 4.0)
