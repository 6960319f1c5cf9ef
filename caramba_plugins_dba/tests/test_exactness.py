"""Where nothing is left out, nothing may change: the exactness ladder of one layer, in float64.

E1 all pairs rotary, E2 any split of the pairs, E4 shifted positions, E6 every rope scaling and both pair layouts; E3
and whole models are in ``test_real_teacher.py``, E5 (cached decoding) in ``test_attention.py``.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.start.assemble import geometric
from caramba_plugins_dba.transplant import GQAToDBA
from caramba_plugins_llama.head_rows import head_order, rows_in_order
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.rope import Rope
from caramba_plugins_upcycle.transplant import Calibrated
from dba_conversion import convert, filled, frame, inputs
from torch import Tensor

from caramba_core.errors import InvalidValue
from caramba_core.nn.build import load_object

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
        "qk_norm_eps": source.qk_norm_eps,
        "qk_norm_span": source.qk_norm_span,
        "qk_norm_offset": source.qk_norm_offset,
    }
    return DecoupledBottleneckAttention(**{**sizes, **options})


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("v_layout", ["latent", "per_head"])
def test_e1_all_pairs_rotary_is_the_teacher(shape: str, rope: str, v_layout: str) -> None:
    source = teacher(shape, ROPES[rope])
    module = filled(source, WIDTH, seed=1)
    x = inputs(2, 33, WIDTH, seed=2)
    converted, _ = convert(module, source, student(source, source.head_dim // 2, v_layout=v_layout), x)
    fresh = inputs(3, 41, WIDTH, seed=3)
    torch.testing.assert_close(converted(fresh, frame(fresh)), module(fresh, frame(fresh)), rtol=0, atol=1e-12)
    torch.testing.assert_close(converted.mix(fresh, frame(fresh)), module.mix(fresh, frame(fresh)), rtol=0, atol=1e-12)


def teacher_scores(query: Tensor, key: Tensor, positions: Tensor, rope: Rope, *, interleaved: bool = False) -> Tensor:
    """``[B, H, T, T]`` from unrotated queries ``[B, T, H, d]`` and keys ``[B, T, H, d]``, with complex numbers.

    Pair ``p`` is ``(p, p + d/2)`` as Hugging Face lays it out, or ``(2p, 2p + 1)``.
    """
    width = query.shape[-1]
    frequencies = torch.tensor(rope.frequencies(width), dtype=torch.float64)
    turn = torch.polar(torch.tensor(rope.attention_scaling, dtype=torch.float64), positions[:, None] * frequencies)

    def turned(x: Tensor) -> Tensor:
        pairs = x.unflatten(-1, (-1, 2)) if interleaved else x.unflatten(-1, (2, -1)).transpose(-1, -2)
        return torch.view_as_complex(pairs.contiguous()) * turn[:, None]

    return torch.einsum("bthp,bshp->bhts", turned(query).conj(), turned(key)).real


def part_scores(source: GroupedQueryAttention, weights: dict[str, Tensor], pairs: Tensor, x: Tensor) -> Tensor:
    """Scores ``[B, H, T, T]`` of these pairs ``[G, n]`` alone, by the student's own gathering and rotation."""
    config = student(source, pairs.shape[1], sem_dim=0)
    made = geometric(Calibrated(config=source, weights=weights, width=WIDTH), config, pairs)
    module = load_object(config.builds)(config, WIDTH).double()
    with torch.no_grad():
        for name, weight in made.items():
            getattr(module, name).copy_(weight)
    queries, keys = module.queries_and_keys(x, torch.arange(x.shape[1]))
    scores: Tensor = torch.einsum("bgmtw,bsgw->bgmts", queries["k_geo"], keys["k_geo"]).flatten(1, 2)
    return scores


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kept", [1, 2, 3])
def test_e2_any_split_of_the_pairs_adds_up_to_the_teacher(shape: str, rope: str, kept: int) -> None:
    source = teacher(shape, ROPES[rope])
    heads, groups, width = SHAPES[shape]
    weights = dict(filled(source, WIDTH, seed=11).named_parameters())
    x = inputs(2, 33, WIDTH, seed=12)
    order = torch.stack([torch.randperm(width // 2, generator=torch.Generator().manual_seed(g)) for g in range(groups)])
    with torch.no_grad():
        parts = [part_scores(source, weights, pairs, x) for pairs in (order[:, :kept], order[:, kept:])]
        query = (x @ weights["q_proj"].T).view(2, 33, heads, width)
        key = (x @ weights["k_proj"].T).view(2, 33, groups, width).repeat_interleave(heads // groups, dim=2)
        expected = teacher_scores(query, key, torch.arange(33), ROPES[rope])
    assert (parts[0] + parts[1] - expected).abs().max() <= 1e-12 * expected.abs().max()
    assert (parts[0] - expected).abs().max() > 1e-2 * expected.abs().max(), "the other part is not needed"


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_e6_a_teacher_with_neighbouring_pairs(shape: str, rope: str) -> None:
    """Checkpoints in the layout of Meta and GGUF are brought into the other by a permutation of rows."""
    source = teacher(shape, ROPES[rope])
    heads, groups, width = SHAPES[shape]
    neighbours = dict(filled(source, WIDTH, seed=13).named_parameters())
    x = inputs(2, 33, WIDTH, seed=14)
    with torch.no_grad():
        query = (x @ neighbours["q_proj"].T).view(2, 33, heads, width)
        key = (x @ neighbours["k_proj"].T).view(2, 33, groups, width).repeat_interleave(heads // groups, dim=2)
        expected = teacher_scores(query, key, torch.arange(33), ROPES[rope], interleaved=True)
        apart = head_order(width, width, adjacent=True) or range(width)
        halves = {name: rows_in_order(neighbours[name], apart) for name in ("q_proj", "k_proj")}
        order = torch.arange(width // 2).expand(groups, -1)
        scores = part_scores(source, halves, order, x)
    assert (scores - expected).abs().max() <= 1e-12 * expected.abs().max()


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


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("given", [(), ("qkv_bias",), ("o_bias",), ("qkv_bias", "o_bias")])
def test_biases_are_carried_or_refused(given: tuple[str, ...], rotary: bool) -> None:
    """At full size either nothing is lost or nothing is started, whichever biases the student has."""
    source = teacher("gqa", ROPES["default"] if rotary else None, **dict.fromkeys(given, True))
    module = filled(source, WIDTH, seed=4)
    x, fresh = inputs(2, 33, WIDTH, seed=5), inputs(3, 41, WIDTH, seed=6)
    exact = 0
    for chosen in product((False, True), repeat=4):
        biases = dict(zip(("q_bias", "k_bias", "v_bias", "o_bias"), chosen, strict=True))
        target = student(source, source.head_dim // 2 if rotary else 0, **biases)
        lost = {bias for bias in source.weights(WIDTH) if bias.endswith("_bias") and not biases[bias]}
        lost -= {"v_bias"} if biases["o_bias"] else set()
        lost -= set() if rotary else {"k_bias"}
        if lost:
            with pytest.raises(InvalidValue, match=f"the source's ({'|'.join(lost)}) has no place"):
                GQAToDBA().check(source, target, WIDTH)
            continue
        GQAToDBA().check(source, target, WIDTH)
        converted, _ = convert(module, source, target, x)
        torch.testing.assert_close(converted(fresh, frame(fresh)), module(fresh, frame(fresh)), rtol=0, atol=1e-12)
        exact += 1
    assert exact


OPTIONS: dict[str, dict[str, object]] = {
    "static gate": {"gate": "static"},
    "dynamic gate": {"gate": "dynamic"},
    "temperature": {"temperature": True},
    "all three": {"gate": "dynamic", "temperature": True, "window": 7},
    "window": {"window": 7},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_start_where_they_change_nothing(option: str) -> None:
    options = OPTIONS[option]
    source = teacher("gqa", ROPES["default"], **{k: v for k, v in options.items() if k == "window"})
    module = filled(source, WIDTH, seed=1)
    x = inputs(2, 33, WIDTH, seed=2)
    plain, _ = convert(module, source, student(source, 4, sem_dim=4, v_dim=20, window=source.window), x)
    converted, _ = convert(module, source, student(source, 4, sem_dim=4, v_dim=20, **options), x)
    fresh = inputs(3, 41, WIDTH, seed=3)
    torch.testing.assert_close(converted(fresh, frame(fresh)), plain(fresh, frame(fresh)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rope", ["default", "yarn"])
def test_a_window_is_kept(rope: str) -> None:
    source = teacher("gqa", ROPES[rope], window=6)
    module = filled(source, WIDTH, seed=1)
    x = inputs(2, 33, WIDTH, seed=2)
    converted, _ = convert(module, source, student(source, source.head_dim // 2, window=6), x)
    fresh = inputs(3, 41, WIDTH, seed=3)
    torch.testing.assert_close(converted(fresh, frame(fresh)), module(fresh, frame(fresh)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("field", "value", "source_window"),
    [("null", True, None), ("tied_semantic", True, None), ("window", 5, None), ("window", None, 5), ("window", 5, 6)],
)
def test_options_without_a_start_are_refused(field: str, value: object, source_window: int | None) -> None:
    source = teacher("gqa", ROPES["default"], window=source_window)
    target = student(source, 3, **{"window": source_window, field: value})
    with pytest.raises(InvalidValue) as caught:
        GQAToDBA().check(source, target, WIDTH)
    assert caught.value.field == field


@pytest.mark.parametrize("rope", ROPES)
def test_e4_shifted_positions_change_nothing(rope: str) -> None:
    source = teacher("gqa", ROPES[rope])
    module = filled(student(source, 2, sem_dim=5, v_dim=7), WIDTH, seed=9)
    x = inputs(1, 20, WIDTH, seed=10)
    torch.testing.assert_close(module(x, frame(x, first=100)), module(x, frame(x)), rtol=0, atol=1e-11)


NORMS: dict[str, dict[str, object]] = {
    "a head": {"qk_norm_eps": 1e-3},
    "all heads": {"qk_norm_eps": 1e-3, "qk_norm_span": "all", "scale": 0.3},
    "around zero, biases": {"qk_norm_eps": 1e-3, "qk_norm_offset": 1.0, "qkv_bias": True, "o_bias": True},
}


@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k_layout", ["shared", "per_head"])
@pytest.mark.parametrize("rope", [None, "default"])
def test_norms_of_queries_and_keys_are_the_teachers(norms: str, shape: str, k_layout: str, rope: str | None) -> None:
    """All pairs rotary, or none where the teacher has no positions; and the cache holds no more than without norms."""
    source = teacher(shape, ROPES[rope] if rope else None, **NORMS[norms])
    biases = {"q_bias": True, "k_bias": True, "v_bias": True, "o_bias": True} if source.qkv_bias else {}
    target = student(source, source.head_dim // 2 if rope else 0, k_layout=k_layout, **biases)
    assert (
        sum(entry.values for entry in target.cache_spec(WIDTH).values())
        == target.geo_dim + target.sem_dim + target.v_dim
    )
    module = filled(source, WIDTH, seed=31)
    x = inputs(2, 33, WIDTH, seed=32)
    converted, _ = convert(module, source, target, x)
    fresh = inputs(3, 41, WIDTH, seed=33)
    torch.testing.assert_close(converted(fresh, frame(fresh)), module(fresh, frame(fresh)), rtol=0, atol=1e-11)


@pytest.mark.parametrize("norms", NORMS)
def test_a_smaller_cache_behind_norms_loses_the_least_important_pairs(norms: str) -> None:
    source = teacher("gqa", ROPES["default"], **NORMS[norms])
    biases = {"q_bias": True, "k_bias": True, "v_bias": True, "o_bias": True} if source.qkv_bias else {}
    module = filled(source, WIDTH, seed=34)
    x = inputs(4, 65, WIDTH, seed=35)
    errors = []
    for pairs, semantic in ((5, 3), (3, 6), (1, 2)):
        converted, started = convert(module, source, student(source, pairs, sem_dim=semantic, **biases), x)
        errors.append((converted(x, frame(x)) - module(x, frame(x))).norm().item())
        assert 0 < started.report["semantic_lost"] < 1
    assert errors == sorted(errors)


def test_queries_and_keys_behind_norms_are_not_refitted() -> None:
    source = teacher("gqa", ROPES["default"], qk_norm_eps=1e-3)
    with pytest.raises(InvalidValue, match="behind norms, queries and keys are no linear maps"):
        GQAToDBA(refits="qkv").check(source, student(source, 2), WIDTH)
    with pytest.raises(InvalidValue, match="differs from the source's"):
        GQAToDBA().check(source, student(source, 2, qk_norm_eps=None), WIDTH)


@pytest.mark.parametrize("shape", SHAPES)
def test_pairs_that_do_not_turn_are_the_first_to_move(shape: str) -> None:
    """With a part of each head rotary, keeping its pairs keeps the teacher."""
    source = teacher(shape, Rope(theta=100.0, rotated=4))
    module = filled(source, WIDTH, seed=36)
    x = inputs(2, 33, WIDTH, seed=37)
    converted, started = convert(module, source, student(source, 2), x)
    assert started.report["pairs"] == [[0, 1]] * source.n_kv_heads
    fresh = inputs(3, 41, WIDTH, seed=38)
    torch.testing.assert_close(converted(fresh, frame(fresh)), module(fresh, frame(fresh)), rtol=0, atol=1e-11)
