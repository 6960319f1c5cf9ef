"""A cache with a window and sinks: what it holds and what new tokens see, token by token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caramba_core.components import CacheEntry
from caramba_core.nn.cache import LayerCache


@settings(max_examples=60, deadline=None)
@given(
    sinks=st.integers(0, 4),
    last=st.integers(1, 6),
    capacity=st.none() | st.integers(1, 40),
    passes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
)
def test_holds_the_first_and_the_last_tokens(sinks: int, last: int, capacity: int | None, passes: list[int]) -> None:
    entry = CacheEntry(shape=(), window=sinks + last, sinks=sinks)
    cache = LayerCache({"token": entry}, 1, torch.float64, torch.device("cpu"))
    if capacity is not None:
        cache.reserve(capacity)
    done = 0
    for count in passes:
        end = done + count
        seen = cache.extend(token=torch.arange(done, end, dtype=torch.float64)[None])["token"]
        assert seen[0].tolist() == [s for s in range(end) if s < sinks or s > done - last]
        held = cache.tensors["token"][0, : min(end, sinks + last)]
        assert sorted(held.tolist()) == [s for s in range(end) if s < sinks or s >= end - last]
        assert cache.tensors["token"].shape[1] <= sinks + last
        cache.length = done = end
        latest = cache.read_last("token", min(last, end))[0].tolist()
        assert latest == list(range(end - min(last, end), end))


@settings(max_examples=60, deadline=None)
@given(
    sinks=st.integers(0, 4),
    last=st.integers(0, 6),
    first=st.lists(st.integers(0, 12), min_size=2, max_size=2),
    steps=st.integers(1, 15),
)
def test_single_tokens_go_where_passes_put_them(sinks: int, last: int, first: list[int], steps: int) -> None:
    """Two sequences of different lengths, one token at a time, against a cache of each alone."""
    if sinks + last == 0:
        return
    entry = CacheEntry(shape=(), window=sinks + last, sinks=sinks)
    both, device = LayerCache({"token": entry}, 2, torch.float64, torch.device("cpu")), torch.device("cpu")
    both.reserve(40)
    alone = [LayerCache({"token": entry}, 1, torch.float64, device) for _ in first]
    ends = torch.zeros(2, dtype=torch.int64)
    for step in range(max(first) + steps):
        grows = torch.tensor([step >= max(first) - length for length in first])
        before = both.tensors["token"].clone()
        ends = ends + grows
        both.put(ends.clamp(min=1), token=ends[:, None].double() - 1)
        for row, cache in enumerate(alone):
            if grows[row]:
                cache.extend(token=torch.full((1, 1), cache.length, dtype=torch.float64))
                cache.length += 1
            else:
                both.tensors["token"][row] = before[row]
    for row, cache in enumerate(alone):
        held = min(cache.length, sinks + last)
        assert torch.equal(both.tensors["token"][row, :held], cache.tensors["token"][0, :held])


@pytest.mark.parametrize("sinks", [0, 2])
def test_constant_bytes_once_the_window_is_full(sinks: int) -> None:
    entry = CacheEntry(shape=(3,), window=8, sinks=sinks)
    cache = LayerCache({"key": entry}, 2, torch.float32, torch.device("cpu"))
    for step in range(30):
        cache.extend(key=torch.zeros(2, 1, 3))
        cache.length = step + 1
    assert cache.bytes == 2 * 8 * 3 * 4
