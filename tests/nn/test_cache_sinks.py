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
        assert held.tolist() == [s for s in range(end) if s < sinks or s >= end - last]
        assert cache.tensors["token"].shape[1] <= sinks + last
        cache.length = done = end


@pytest.mark.parametrize("sinks", [0, 2])
def test_constant_bytes_once_the_window_is_full(sinks: int) -> None:
    entry = CacheEntry(shape=(3,), window=8, sinks=sinks)
    cache = LayerCache({"key": entry}, 2, torch.float32, torch.device("cpu"))
    for step in range(30):
        cache.extend(key=torch.zeros(2, 1, 3))
        cache.length = step + 1
    assert cache.bytes == 2 * 8 * 3 * 4
