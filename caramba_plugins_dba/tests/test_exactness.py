"""Where nothing is left out, nothing may change: the exactness ladder of the start, in float64."""

from __future__ import annotations

import pytest
import torch
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_standard.gqa import GroupedQueryAttention
from dba_conversion import convert, filled, frame, inputs

from caramba_core.nn.cache import LayerCache
from caramba_core.rope import Rope

WIDTH = 48
SHAPES = {"mha": (4, 4, 8), "gqa": (6, 2, 12), "mqa": (3, 1, 16)}
ROPES = {
    "default": Rope(theta=100.0),
    "linear": Rope(theta=100.0, scaling="linear", factor=4.0),
    "llama3": Rope(
        theta=100.0,
        scaling="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=32,
    ),
    "yarn": Rope(theta=100.0, scaling="yarn", factor=8.0, original_max_position_embeddings=32),
}


def teacher(shape: str, rope: Rope | None, **options: object) -> GroupedQueryAttention:
    heads, groups, width = SHAPES[shape]
    return GroupedQueryAttention(n_heads=heads, n_kv_heads=groups, head_dim=width, rope=rope, **options)  # type: ignore[arg-type]


def student(source: GroupedQueryAttention, pairs: int, **options: object) -> DecoupledBottleneckAttention:
    """Everything kept: ``pairs`` rotary ones, the rest semantic."""
    groups, width = source.n_kv_heads, source.head_dim
    sizes = {
        "geo_dim": 2 * groups * pairs,
        "sem_dim": groups * (width - 2 * pairs),
        "v_dim": groups * width,
        "rope": source.rope,
        "n_heads": source.n_heads,
        "n_kv_heads": groups,
        "head_dim": width,
        "scale": source.scale,
    }
    return DecoupledBottleneckAttention(**{**sizes, **options})


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("v_layout", ["latent", "per_head"])
def test_all_pairs_rotary_is_the_teacher(shape: str, rope: str, v_layout: str) -> None:
    source = teacher(shape, ROPES[rope])
    module = filled(source, WIDTH, seed=1)
    x = inputs(2, 33, WIDTH, seed=2)
    converted, _ = convert(module, source, student(source, source.head_dim // 2, v_layout=v_layout), x)
    fresh = inputs(3, 41, WIDTH, seed=3)
    torch.testing.assert_close(converted(fresh, frame(fresh)), module(fresh, frame(fresh)), rtol=0, atol=1e-12)
    torch.testing.assert_close(converted.mix(fresh, frame(fresh)), module.mix(fresh, frame(fresh)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k_layout", ["shared", "per_head"])
@pytest.mark.parametrize("options", [{}, {"qkv_bias": True, "o_bias": True, "scale": 0.5}], ids=["plain", "biases"])
def test_no_rotation_and_no_pairs_is_the_teacher(shape: str, k_layout: str, options: dict[str, object]) -> None:
    source = teacher(shape, None, **options)
    module = filled(source, WIDTH, seed=4)
    x = inputs(2, 33, WIDTH, seed=5)
    biases = dict.fromkeys(("q_bias", "k_bias", "v_bias", "o_bias"), bool(options))
    target = student(source, 0, k_layout=k_layout, **biases)
    converted, started = convert(module, source, target, x)
    fresh = inputs(3, 41, WIDTH, seed=6)
    torch.testing.assert_close(converted(fresh, frame(fresh)), module(fresh, frame(fresh)), rtol=0, atol=1e-12)
    assert started.report["semantic_lost"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("k_layout", ["shared", "per_head"])
@pytest.mark.parametrize("v_layout", ["latent", "per_head"])
@pytest.mark.parametrize("chunks", [(7, 1, 1), (1,) * 9, (4, 5)], ids=str)
def test_decoding_from_the_compressed_cache_is_the_full_pass(
    k_layout: str, v_layout: str, chunks: tuple[int, ...]
) -> None:
    source = teacher("gqa", ROPES["default"])
    config = student(
        source, 3, k_layout=k_layout, v_layout=v_layout, sem_dim=4, v_dim=6, q_bias=True, k_bias=True, v_bias=True
    )
    module = filled(config, WIDTH, seed=7)
    x = inputs(2, 9, WIDTH, seed=8)
    full = module.mix(x, frame(x))

    layer = LayerCache(config.cache_spec(WIDTH), 2, torch.float64, torch.device("cpu"))
    done, parts = 0, []
    for size in chunks:
        part = x[:, done : done + size]
        part_frame = frame(part, first=done)
        parts.append(module.mix(part, _Cached.frame(part_frame, layer)))
        done += size
        layer.length = done
    torch.testing.assert_close(torch.cat(parts, dim=1), full, rtol=0, atol=1e-12)
    assert layer.bytes >= done * 2 * 8 * (config.sem_dim + config.geo_dim + config.v_dim)


class _Cached:
    """A cache of one layer."""

    def __init__(self, layer: LayerCache) -> None:
        self._layer = layer

    @classmethod
    def frame(cls, base: object, layer: LayerCache) -> object:
        from dataclasses import replace

        return replace(base, cache=cls(layer))  # type: ignore[type-var]

    def layer(self, site: str, application: int = 0) -> LayerCache:
        return self._layer


def test_shifted_positions_change_nothing() -> None:
    source = teacher("gqa", ROPES["llama3"])
    module = filled(student(source, 2, sem_dim=5, v_dim=7), WIDTH, seed=9)
    x = inputs(1, 20, WIDTH, seed=10)
    torch.testing.assert_close(module(x, frame(x, first=100)), module(x, frame(x)), rtol=0, atol=1e-11)
