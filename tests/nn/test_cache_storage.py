"""A quantized cache: what quantization loses, what is allocated, and that passes and lengths do not matter."""

from __future__ import annotations

import math

import pytest
import torch
from caramba_plugins_standard.quantized import Blocks, Int4, Int8
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from caramba_core.components import CacheEntry
from caramba_core.errors import InvalidValue
from caramba_core.nn.cache import LayerCache

SHAPES = st.lists(st.integers(1, 9), max_size=3).map(tuple)
STORAGES = st.integers(1, 40).flatmap(lambda block: st.sampled_from((Int4(block=block), Int8(block=block))))
PASSES = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def layer_of(
    entry: CacheEntry, storage: Blocks | None, *, batch: int = 2, dtype: torch.dtype = torch.float32
) -> LayerCache:
    return LayerCache({"token": entry}, batch, dtype, torch.device("cpu"), storage)


def values_of(seed: int, *shape: int, offset: float = 0.0) -> Tensor:
    """Tokens of different size, with channels that stand out."""
    generator = torch.Generator().manual_seed(seed)
    channels = torch.randn(shape[2:], generator=generator).exp()
    return torch.randn(shape, generator=generator).exp() * torch.randn(shape, generator=generator) * channels + offset


@settings(max_examples=80, deadline=None)
@given(shape=SHAPES, storage=STORAGES, seed=st.integers(0, 99), offset=st.sampled_from((0.0, 3.0, -200.0)))
def test_a_value_is_off_by_half_a_step_at_most(
    shape: tuple[int, ...], storage: Blocks, seed: int, offset: float
) -> None:
    values = values_of(seed, 2, 3, *shape, offset=offset)
    read = layer_of(CacheEntry(shape=shape), storage).round_trip("token", values)
    assert read.shape == values.shape
    rows, found = values.reshape(6, -1).double(), read.reshape(6, -1).double()
    for start in range(0, rows.shape[1], storage.block):
        block, again = rows[:, start : start + storage.block], found[:, start : start + storage.block]
        low, high = block.amin(1, keepdim=True), block.amax(1, keepdim=True)
        half = (high - low) / (2**storage.bits - 1) / 2
        of_float16 = 2**-10 * torch.maximum(low.abs(), high.abs()) + 2**-14
        assert ((again - block).abs() <= half + of_float16).all()


def test_blocks_of_equal_values_come_back() -> None:
    for value in (0.0, 1.5, -3.0, 1e-9):
        values = torch.full((2, 3, 5), value)
        read = layer_of(CacheEntry(shape=(5,)), Int4(block=2)).round_trip("token", values)
        torch.testing.assert_close(read, values, rtol=0, atol=1e-8)


@pytest.mark.parametrize("storage", [Int8, Int4])
def test_a_block_may_be_longer_than_a_token(storage: type[Blocks]) -> None:
    values, entry = values_of(3, 2, 4, 5), CacheEntry(shape=(5,))
    one, other = (layer_of(entry, storage(block=block)).round_trip("token", values) for block in (5, 1 << 62))
    assert torch.equal(one, other)


def test_codes_are_spent_on_the_range_that_is_there() -> None:
    """Sixteen levels between the least and the greatest value, both among them, wherever the block lies."""
    values = torch.linspace(7.0, 8.0, 16).view(1, 1, 16)
    read = layer_of(CacheEntry(shape=(16,)), Int4(block=16), batch=1).round_trip("token", values)
    torch.testing.assert_close(read, values, rtol=0, atol=1e-2 / 15)


@settings(max_examples=80, deadline=None)
@given(
    shape=SHAPES,
    storage=st.none() | STORAGES,
    capacity=st.none() | st.integers(1, 60),
    passes=PASSES,
    kept=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_any_split_reads_what_each_token_alone_reads(
    shape: tuple[int, ...],
    storage: Blocks | None,
    capacity: int | None,
    passes: list[int],
    kept: float,
    seed: int,
) -> None:
    """Growing or with room from the start, at once or in passes, after taking wrong tokens back."""
    values = values_of(seed, 2, sum(passes), *shape)
    entry = CacheEntry(shape=shape)
    cache = layer_of(entry, storage)
    alone = torch.cat([cache.round_trip("token", values[:, i : i + 1]) for i in range(values.shape[1])], dim=1)
    if capacity is not None:
        cache.reserve(capacity)
    done = 0
    for count in passes:
        cache.extend(token=-values[:, done : done + count].flip(1))  # rejected
        back = math.floor(kept * done)
        cache.length = back
        seen = cache.extend(token=values[:, back : done + count])["token"]
        cache.length = done = done + count
        assert torch.equal(seen, alone[:, :done])
        assert torch.equal(cache.read_last("token", done - back), alone[:, back:done])
    if capacity is not None and capacity >= done:
        assert cache.tensors[next(iter(cache.tensors))].shape[1] == capacity


@settings(max_examples=60, deadline=None)
@given(
    sinks=st.integers(0, 4), last=st.integers(1, 6), storage=STORAGES, passes=PASSES, capacity=st.none() | st.just(30)
)
def test_windows_hold_tokens_quantized_once(
    sinks: int, last: int, storage: Blocks, passes: list[int], capacity: int | None
) -> None:
    entry = CacheEntry(shape=(7,), window=sinks + last, sinks=sinks)
    cache = layer_of(entry, storage)
    values = values_of(3, 2, sum(passes), 7)
    alone = cache.round_trip("token", values)
    if capacity is not None:
        cache.reserve(capacity)
    done = 0
    for count in passes:
        end = done + count
        seen = cache.extend(token=values[:, done:end])["token"]
        assert torch.equal(seen, alone[:, [s for s in range(end) if s < sinks or s > done - last]])
        cache.length = done = end
        assert torch.equal(cache.read_last("token", min(last, end)), alone[:, end - min(last, end) : end])


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, storage=STORAGES, capacity=st.integers(0, 20), batch=st.integers(1, 3))
def test_bytes_are_those_of_the_tensors(shape: tuple[int, ...], storage: Blocks, capacity: int, batch: int) -> None:
    entry = CacheEntry(shape=shape)
    cache = layer_of(entry, storage, batch=batch)
    cache.reserve(capacity)
    held = sum(t.untyped_storage().nbytes() for t in cache.tensors.values())
    assert cache.bytes == held == batch * capacity * storage.bytes(entry)
    blocks = math.ceil(entry.values / storage.block)
    assert storage.bytes(entry) == math.ceil(entry.values * storage.bits / 8) + 4 * blocks


def test_what_pins_a_type_and_what_is_a_state_stays() -> None:
    spec = {
        "token": CacheEntry(shape=(6,)),
        "pinned": CacheEntry(shape=(3,), dtype="float64"),
        "state": CacheEntry(shape=(2, 2), per_token=False),
    }
    cache = LayerCache(spec, 1, torch.bfloat16, torch.device("cpu"), Int4(block=4))
    cache.reserve(5)
    types = {name: (tuple(t.shape), t.dtype) for name, t in cache.tensors.items()}
    assert types == {
        "token.codes": ((1, 5, 3), torch.uint8),
        "token.blocks": ((1, 5, 2, 2), torch.float16),
        "pinned": ((1, 5, 3), torch.float64),
        "state": ((1, 2, 2), torch.bfloat16),
    }
    values = values_of(1, 1, 2, 3).double()
    seen = cache.extend(token=torch.ones(1, 2, 6, dtype=torch.bfloat16), pinned=values)
    assert torch.equal(seen["pinned"], values)
    assert seen["token"].dtype == torch.bfloat16


@pytest.mark.parametrize("bits", [4, 8])
def test_more_bits_and_smaller_blocks_lose_less(bits: int) -> None:
    values = values_of(5, 2, 64, 4, 32)
    lost = {
        (storage.bits, block): float(
            (layer_of(CacheEntry(shape=(4, 32)), storage(block=block)).round_trip("token", values) - values).norm()
        )
        for storage in (Int4, Int8)
        for block in (8, 32, 128)
    }
    assert lost[bits, 8] < lost[bits, 32] < lost[bits, 128]
    assert lost[8, 128] < lost[4, 8]


def test_settings_that_cannot_be() -> None:
    with pytest.raises(InvalidValue, match="block"):
        Int4(block=0)
