"""The start from grouped-query attention: exact near by, and better than leaving far tokens out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caramba_plugins_linear.attention import LinearAttention
from caramba_plugins_linear.module import LinearAttentionModule
from caramba_plugins_linear.start.clusters import k_means
from caramba_plugins_linear.start.far_attention import far_attention, summed_turns, waves
from caramba_plugins_linear.start.maps import _metric, _turned
from caramba_plugins_linear.transplant import GQAToLinear
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.gqa_module import GroupedQueryAttentionModule
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.rotary import cos_sin, rotate_reference
from caramba_plugins_upcycle.transplant import Calibrated
from torch import Tensor

from caramba_core.errors import InputError, InvalidValue
from caramba_core.nn.build import load_object
from caramba_core.nn.frame import Frame

WIDTH = 24
SIZES: dict[str, Any] = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "rope": Rope(theta=1000.0)}

YARN = Rope(theta=100.0, scaling="yarn", factor=8.0, original_max_position_embeddings=32)


def teacher(**options: Any) -> GroupedQueryAttentionModule:
    module = GroupedQueryAttentionModule(GroupedQueryAttention(**{**SIZES, **options}), WIDTH).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            size = 2 * WIDTH**-0.5 if name.endswith("_proj") else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * size)
    return module


def inputs(batch: int, tokens: int, seed: int, kinds: int = 0) -> Tensor:
    """Random tokens; of a few kinds, if asked for."""
    generator = torch.Generator().manual_seed(seed)
    if not kinds:
        return torch.randn(batch, tokens, WIDTH, generator=generator, dtype=torch.float64)
    table = torch.randn(kinds, WIDTH, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return table[torch.randint(kinds, (batch, tokens), generator=generator)]


def frame(x: Tensor) -> Frame:
    return Frame(positions=torch.arange(x.shape[1]))


@torch.no_grad()
def convert(
    source: GroupedQueryAttentionModule, target: LinearAttention, x: Tensor
) -> tuple[LinearAttentionModule, dict[str, Any]]:
    transplant, config = GQAToLinear(), source.config
    assert isinstance(config, GroupedQueryAttention)
    transplant.check(config, target, WIDTH)
    (moment,) = transplant.moments(config, target).values()
    collector = load_object(moment.builds)(moment, config, WIDTH)
    for row in x:
        collector.update(source.probe(row[None], frame(x)))
    moments = {"sequences": collector.result()}
    seen = Calibrated(config=config, weights=source.state_dict(), width=WIDTH, moments=moments)
    started = transplant.start(seen, target)
    assert started.weights.keys() == target.weights(WIDTH).keys()
    module = LinearAttentionModule(target, WIDTH).double()
    module.load_state_dict(dict(started.weights))
    return module, dict(started.report)


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{}, {"qkv_bias": True, "o_bias": True, "scale": 0.5, "qk_norm_eps": 1e-5}], ids=["plain", "all"]
)
def test_exact_while_the_text_fits(options: dict[str, Any]) -> None:
    source = teacher(**options)
    target = LinearAttention(**SIZES, features=5, window=6, sinks=3, **{"o_bias": True, **options})
    module, _ = convert(source, target, inputs(3, 30, seed=2))
    x = inputs(2, 30, seed=3)
    difference = (module(x, frame(x)) - source(x, frame(x))).abs().amax(dim=(0, 2))
    assert difference[:9].max() < 1e-12
    assert difference[9:].min() > 1e-6


@torch.no_grad()
@pytest.mark.parametrize("window", [0, 4])
def test_without_positions_and_a_slot_for_each_kind_of_token_nothing_is_lost(window: int) -> None:
    """Slots are exact where keys are as many as slots; only the offsets are estimated."""
    source = teacher(rope=None)
    target = LinearAttention(**{**SIZES, "rope": None}, features=7, window=window, sinks=0)
    module, report = convert(source, target, inputs(8, 120, seed=4, kinds=7))
    x = inputs(2, 120, seed=5, kinds=7)
    wanted = source(x, frame(x))
    error = float((module(x, frame(x)) - wanted).square().mean() / wanted.square().mean())
    assert report["keys_scatter"] < 1e-12
    assert error < 1e-3


@torch.no_grad()
def test_slots_are_better_than_nothing_and_more_are_better() -> None:
    source = teacher()
    x = inputs(6, 150, seed=6, kinds=40)
    wanted = source(x, frame(x))
    errors = []
    for features in (1, 4, 16, 40):
        module, report = convert(source, LinearAttention(**SIZES, features=features, window=8, sinks=1), x)
        errors.append(float((module(x, frame(x)) - wanted).square().mean()))
    assert 0.3 < report["far_attention"] < 1.0
    module.q_map_bias.fill_(-1e4)  # nobody reads a slot
    errors.insert(0, float((module(x, frame(x)) - wanted).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


def test_k_means_finds_what_lies_apart_and_gives_the_same_twice() -> None:
    generator = torch.Generator().manual_seed(7)
    truth = 10 * torch.randn(5, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (200,), generator=generator)
    points = truth[labels] + 0.01 * torch.randn(200, 3, generator=generator, dtype=torch.float64)
    weights = torch.rand(200, generator=generator, dtype=torch.float64)
    centres, place = k_means(points, weights, 5)
    assert (points - centres[place]).square().sum(1).max() < 0.01
    for slot in range(5):
        assert len(set(labels[place == slot].tolist())) == 1
    assert torch.equal(k_means(points, weights, 5)[0], centres)
    few, _ = k_means(points[:3], weights[:3], 5)  # more centres than points
    assert bool(few.isfinite().all())


def test_calibration_needs_far_tokens() -> None:
    with pytest.raises(InputError, match="30 tokens") as caught:
        convert(teacher(), LinearAttention(**SIZES, features=5, window=26, sinks=4), inputs(1, 30, seed=8))
    assert "start.max_context" in str(caught.value)


@pytest.mark.parametrize(
    ("source", "target", "field"),
    [
        ({}, {"head_dim": 8}, "head_dim"),
        ({}, {"rope": None}, "rope"),
        ({}, {"scale": 2.0}, "scale"),
        ({"window": 4}, {}, None),
        ({"qk_norm_eps": 1e-5}, {}, "qk_norm_eps"),
        ({"qkv_bias": True}, {}, "qkv_bias"),
        ({"o_bias": True}, {}, "o_bias"),
    ],
    ids=str,
)
def test_refuses_what_it_cannot_start(source: dict[str, Any], target: dict[str, Any], field: str | None) -> None:
    given = GroupedQueryAttention(**{**SIZES, **source})
    wanted = LinearAttention(**{**SIZES, "features": 6, **target})
    with pytest.raises(InvalidValue) as caught:
        GQAToLinear().check(given, wanted, WIDTH)
    assert caught.value.field == field


@torch.no_grad()
def test_maps_turn_the_way_that_tokens_do() -> None:
    """Far attention at one distance alone: a slot weighs what the score at that distance is."""
    config = LinearAttention(**SIZES, features=5)
    generator = torch.Generator().manual_seed(9)
    query = torch.randn(1, 2, 20, 6, generator=generator, dtype=torch.float64)
    key = torch.randn(6, generator=generator, dtype=torch.float64)
    attention = torch.zeros(1, 2, 20, 20, dtype=torch.float64)
    attention[:, :, torch.arange(5, 20), torch.arange(15)] = 0.3
    wave = waves(config, 20, torch.device("cpu"))
    assert wave is not None
    turn = summed_turns(attention, wave)[0] / attention.sum((0, 2, 3))[:, None]
    weights = _turned(key.expand(2, 6), turn)  # [m, d]
    found = torch.einsum("nmtd,md->nmt", query, weights)
    frequencies = torch.tensor(SIZES["rope"].frequencies(6), dtype=torch.float64)
    cos, sin = cos_sin(frequencies, torch.tensor([5]))
    wanted = (rotate_reference(query.flatten(0, 2)[:, None, None], cos, sin).flatten(1) * key).sum(1)
    torch.testing.assert_close(found.flatten(), wanted, rtol=0, atol=1e-12)
    metric = _metric(config, query[:, None], turn[None])
    expected = found.square().mean() * config.multiplier**2
    torch.testing.assert_close(key @ metric[0] @ key, expected, rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("rope", [SIZES["rope"], YARN, None], ids=["rotary", "yarn", "plain"])
@pytest.mark.parametrize(("window", "sinks"), [(4, 2), (0, 0), (0, 3), (5, 0)])
def test_far_attention_is_the_teachers(rope: Rope | None, window: int, sinks: int) -> None:
    """Against the probe, spelled out: what each key receives, and the denominators."""
    source = teacher(rope=rope)
    config = LinearAttention(**{**SIZES, "rope": rope}, features=5, window=window, sinks=sinks)
    x = inputs(3, 17, seed=10)
    probe = source.probe(x, frame(x))
    found = far_attention(config, probe.query, probe.key)
    row, column = torch.arange(17)[:, None], torch.arange(17)
    far = probe.probabilities.masked_fill((column < sinks) | (column > row - window), 0.0)
    torch.testing.assert_close(found.received.flatten(1, 2), far.sum(2), rtol=0, atol=1e-12)
    factor = config.multiplier if rope is None else config.multiplier * rope.attention_scaling**2
    own = (probe.query.unflatten(1, (2, 2)) * probe.key[:, :, None]).sum(-1) * factor
    diagonal = probe.probabilities.diagonal(dim1=2, dim2=3)
    torch.testing.assert_close((own - found.total).exp().flatten(1, 2), diagonal, rtol=0, atol=1e-12)
    if rope is None:
        assert found.turn is None
        return
    frequencies = torch.tensor(rope.frequencies(6), dtype=torch.float64)
    angle = (row - column)[..., None] * frequencies
    turns = torch.complex(angle.cos(), -angle.sin())
    mean = torch.einsum("nhts,tsp->hp", far.to(turns.dtype), turns) / far.sum((0, 2, 3))[:, None]
    wanted = mean * rope.attention_scaling**2
    assert found.turn is not None
    torch.testing.assert_close(found.turn.flatten(0, 1), wanted, rtol=0, atol=1e-12)
