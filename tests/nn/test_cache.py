"""What decoding keeps: growth, bytes, types, taking tokens back."""

from __future__ import annotations

import pytest
import torch

from caramba_core.components import Attention, CacheEntry, Embedder, Head, component
from caramba_core.graph import Graph, Node
from caramba_core.nn.cache import Cache, LayerCache

TOKEN = CacheEntry(shape=(3, 2))
NARROW = CacheEntry(shape=(5,), dtype="int8")
STATE = CacheEntry(shape=(4, 4), per_token=False)
WINDOW = CacheEntry(shape=(2,), window=6)


@component
class _Keeping(Attention):
    entries: dict[str, CacheEntry]

    def cache_spec(self, width: int) -> dict[str, CacheEntry]:
        return self.entries


def cache_of(applications: int = 1, capacity: int | None = None, **entries: CacheEntry) -> Cache:
    def node(name: str, config: Embedder | Head | _Keeping, count: int = 1) -> Node:
        return Node(name=name, config=config, path=(), width_in=4, width_out=4, applications=count)

    graph = Graph(
        embedder=node("model.embedder", Embedder(vocab_size=4)),
        topology=node("model.attention", _Keeping(entries=entries), applications),
        head=node("model.head", Head()),
        tied_embeddings=False,
    )
    return Cache(graph, batch=2, dtype=torch.float32, capacity=capacity)


def push(cache: Cache, count: int, application: int = 0) -> None:
    layer = cache.layer("model.attention", application)
    layer.extend(**{name: torch.ones(2, count, *entry.shape) for name, entry in layer.spec.items() if entry.per_token})


def test_growth_doubles_and_keeps_what_was_there() -> None:
    layer = LayerCache({"token": TOKEN}, 2, torch.float64, torch.device("cpu"))
    sizes, added = set(), []
    for length in range(300):
        layer.length = length
        added.append(torch.randn(2, 1, 3, 2, dtype=torch.float64))
        seen = layer.extend(token=added[-1])["token"]
        sizes.add(layer.tensors["token"].shape[1])
    assert sizes == {64, 128, 256, 512}
    assert torch.equal(seen, torch.cat(added, dim=1))


def test_capacity_allocates_once_and_exactly() -> None:
    cache = cache_of(capacity=10, token=TOKEN, narrow=NARROW, state=STATE, window=WINDOW)
    expected = 2 * (10 * 6 * 4 + 10 * 5 * 1 + 16 * 4 + 6 * 2 * 4)
    assert cache.bytes == expected
    for _ in range(5):
        push(cache, 2)
        cache.advance(2)
    assert cache.bytes == expected
    assert cache.layer("model.attention").tensors["narrow"].dtype == torch.int8


def test_a_window_longer_than_the_text_costs_the_text() -> None:
    assert cache_of(capacity=3, window=WINDOW).bytes == 2 * 3 * 2 * 4


def test_every_application_has_tensors_of_its_own() -> None:
    cache = cache_of(applications=3, capacity=4, token=TOKEN)
    push(cache, 4, application=1)
    filled = [bool(cache.layer("model.attention", index).tensors["token"].any()) for index in range(3)]
    assert filled == [False, True, False]
    assert cache.bytes == 3 * 2 * 4 * 6 * 4


def test_every_entry_grows_together() -> None:
    cache = cache_of(token=TOKEN, narrow=NARROW)
    with pytest.raises(AssertionError, match="together"):
        cache.layer("model.attention").extend(token=torch.ones(2, 1, 3, 2))


def test_taking_tokens_back() -> None:
    cache = cache_of(token=TOKEN, window=WINDOW)
    push(cache, 6)
    cache.advance(6)
    cache.truncate(4)
    assert cache.length == cache.layer("model.attention").length == 4
    with pytest.raises(AssertionError, match="5 tokens of 4"):
        cache.truncate(5)
    push(cache, 4)
    cache.advance(4)
    with pytest.raises(AssertionError, match=r"window of model\.attention"):
        cache.truncate(7)  # the window has begun to slide
    cache.truncate(0)
    push(cache, 3)


def test_states_cannot_go_back_but_start_anew() -> None:
    cache = cache_of(state=STATE)
    cache.layer("model.attention").tensors["state"].fill_(3.0)
    cache.advance(5)
    with pytest.raises(AssertionError, match="state"):
        cache.truncate(4)
    cache.truncate(0)
    assert not cache.layer("model.attention").tensors["state"].any()


def test_room_that_is_made_later_keeps_what_is_cached() -> None:
    cache = cache_of(capacity=4, token=TOKEN)
    push(cache, 4)
    cache.advance(4)
    cache.reserve(100)
    assert cache.length == 4 and cache.bytes == 2 * 100 * TOKEN.values * 4
    planes = cache.layer("model.attention").tensors["token"]
    assert bool((planes[:, :4] == 1).all()) and not planes[:, 4:].any()
