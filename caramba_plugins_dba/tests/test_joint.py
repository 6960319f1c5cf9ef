"""The start of joint latents: exact where nothing is left out, best where something is; refits and sizes by layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.module import DecoupledBottleneckModule
from caramba_plugins_dba.refine import ValueFit
from caramba_plugins_dba.transplant import GQAToDBA
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.rope import Rope
from caramba_plugins_upcycle.joint_latent import Joint, Signals, evenly, solve
from caramba_plugins_upcycle.transplant import CacheBudget, Example
from dba_conversion import calibrated, convert, filled, frame, inputs
from torch import Tensor

from caramba_core.components import Attention
from caramba_core.errors import InvalidValue
from caramba_core.nn.frame import Frame

WIDTH = 48
YARN = Rope(theta=100.0, scaling="yarn", factor=8.0, original_max_position_embeddings=32)
HEADS: dict[str, Any] = {"n_heads": 6, "n_kv_heads": 3, "head_dim": 8}
"""24 values of keys and as many of values."""


def pair(
    rope: Rope | None, biases: bool = False, **sizes: Any
) -> tuple[GroupedQueryAttention, DecoupledBottleneckAttention]:
    """A source and a target of which everything is kept unless sizes are given."""
    source = GroupedQueryAttention(**HEADS, rope=rope, qkv_bias=biases, o_bias=biases)
    own: dict[str, Any] = {"geo_layout": "shared", "geo_dim": 0, **sizes}
    own = {"sem_dim": 0, "v_dim": 48 - own["geo_dim"], "o_bias": True, **own}
    offsets = dict.fromkeys(("q_bias", "k_bias", "v_bias"), biases)
    return source, DecoupledBottleneckAttention(latent="joint", rope=rope, **HEADS, **offsets, **own)


@pytest.mark.parametrize("biases", [False, True], ids=["plain", "biases"])
def test_no_rotation_and_full_rank_is_the_teacher(biases: bool) -> None:
    source, target = pair(None, biases)
    module, x = filled(source, WIDTH, seed=1), inputs(2, 33, WIDTH, seed=2)
    converted, _ = convert(module, source, target, x)
    fresh = inputs(3, 41, WIDTH, seed=3)
    torch.testing.assert_close(converted(fresh, frame(fresh)), module(fresh, frame(fresh)), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("layout", "geo"), [("shared", 2), ("shared", 10), ("shared", 22), ("per_head", 12)])
def test_rotary_keys_and_latent_make_up_the_whole(layout: str, geo: int) -> None:
    """At one position nothing turns, so that what the latent holds of the keys must be all that is not rotary."""
    source, target = pair(YARN, True, geo_layout=layout, geo_dim=geo)
    module, x = filled(source, WIDTH, seed=1), inputs(2, 33, WIDTH, seed=2)
    converted, started = convert(module, source, target, x)
    fresh = inputs(3, 41, WIDTH, seed=3)
    here = Frame(positions=torch.zeros(41, dtype=torch.int64))
    torch.testing.assert_close(converted(fresh, here), module(fresh, here), rtol=0, atol=1e-10)
    assert not torch.allclose(converted(fresh, frame(fresh)), module(fresh, frame(fresh)), atol=1e-3)
    assert started.report["semantic_lost"] == started.report["values_lost"] == 0.0


@torch.no_grad()
def test_more_room_is_never_worse() -> None:
    source, _ = pair(YARN)
    module, x = filled(source, WIDTH, seed=1), inputs(4, 33, WIDTH, seed=2)
    errors = []
    for geo, values in ((4, 8), (8, 16), (16, 24), (22, 26)):
        converted, _ = convert(module, source, pair(YARN, geo_dim=geo, v_dim=values)[1], x)
        errors.append(float((converted(x, frame(x)) - module(x, frame(x))).square().mean()))
    assert errors == sorted(errors, reverse=True)


def test_dearer_keys_are_kept_at_the_expense_of_values() -> None:
    source, target = pair(YARN, geo_dim=8, v_dim=12)
    module, x = filled(source, WIDTH, seed=1), inputs(4, 33, WIDTH, seed=2)
    seen = calibrated(module, source, target, x)
    lost = [GQAToDBA(key_price=price).start(seen, target).report for price in (0.2, 1.0, 5.0)]
    assert [one["semantic_lost"] for one in lost] == sorted((one["semantic_lost"] for one in lost), reverse=True)
    assert [one["values_lost"] for one in lost] == sorted(one["values_lost"] for one in lost)


@pytest.mark.parametrize("biases", [False, True], ids=["plain", "biases"])
def test_what_reads_the_latent_is_fitted_to_a_stationary_point(biases: bool) -> None:
    source, target = pair(YARN, biases, geo_dim=8, v_dim=14)
    teacher = filled(source, WIDTH, seed=1, dtype=torch.float32)
    x = inputs(5, 24, WIDTH, seed=2, dtype=torch.float32)
    module, _ = convert(teacher, source, target, x)
    assert isinstance(module, DecoupledBottleneckModule)
    with torch.no_grad():
        probe = teacher.probe(x, frame(x))  # type: ignore[operator]
    seen = x + 0.05 * inputs(5, 24, WIDTH, seed=3, dtype=torch.float32)
    example = Example(x=seen, output=probe.output, positions=probe.positions, probing=lambda: probe)
    wanted = example.output - example.output.mean((0, 1))

    def missed() -> Tensor:
        y = module(example.x, frame(example.x))
        return (y - y.mean((0, 1)) - wanted).square().sum() / wanted.square().sum()

    before, kept = missed(), {name: getattr(module, name).clone() for name in ("v_proj", "k_up_proj", "q_sem_proj")}
    slope = torch.autograd.grad(before, [module.v_up_proj])[0]
    settings: dict[str, Any] = {"rounds": 30, "iterations": 40, "ridge": 1e-6}
    with torch.no_grad():
        fit = ValueFit(module, dict(teacher.state_dict()), [example], queries=24).solve(**settings)
    after = missed()
    assert fit["before"] == pytest.approx(before.item(), rel=1e-3)
    assert fit["after"] == pytest.approx(after.item(), rel=1e-2)
    assert after < 0.9 * before
    assert torch.autograd.grad(after, [module.v_up_proj])[0].norm() < 0.1 * slope.norm()
    assert all(torch.equal(getattr(module, name), weight) for name, weight in kept.items())
    y = module(example.x, frame(example.x))
    torch.testing.assert_close(y.mean((0, 1)), example.output.mean((0, 1)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["shared", "per_head"])
def test_sizes_by_layer(layout: str) -> None:
    """What each size loses: nothing at the source's own, and all of any two fit into it together."""
    source, target = pair(YARN, geo_layout=layout, geo_dim=12, v_dim=20)
    module, x = filled(source, WIDTH, seed=1), inputs(4, 33, WIDTH, seed=2)
    seen, transplant = calibrated(module, source, target, x), GQAToDBA()
    rotary, latent = transplant.size_curves(seen, target)
    assert (rotary.field, latent.field, latent.after) == ("geo_dim", "v_dim", "geo_dim")
    assert rotary.sizes[-1] + latent.sizes[-1] <= 48
    for curve, own in ((rotary, 12), (latent, 20)):
        assert own in curve.sizes and len(curve.sizes) == len(curve.lost)
        assert list(curve.lost) == sorted(curve.lost, reverse=True) and 0 <= curve.lost[-1] < curve.lost[0] < 1
        transplant.check(source, curve.alone, WIDTH)
    started = transplant.start(seen, target).report
    assert rotary.lost[rotary.sizes.index(12)] == pytest.approx(started["rotation_lost"], abs=1e-6)


@pytest.mark.parametrize(
    ("sizes", "options", "field"),
    [
        ({"geo_dim": 8, "v_dim": 41}, {}, "v_dim"),
        ({"geo_dim": 12, "geo_layout": "per_head"}, {"fold": "mean"}, None),
        ({"geo_dim": 12, "geo_layout": "per_head"}, {"weighting": "none"}, None),
        ({"geo_dim": 8}, {"refits": "qv"}, None),
    ],
    ids=str,
)
def test_refuses_what_it_cannot_start(sizes: dict[str, Any], options: dict[str, Any], field: str | None) -> None:
    source, target = pair(YARN, **sizes)
    with pytest.raises(InvalidValue) as caught:
        GQAToDBA(**options).check(source, target, WIDTH)
    assert caught.value.field == field


@pytest.mark.parametrize("rope", [None, YARN], ids=["no rope", "yarn"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.25])
def test_proposed_sizes_fit_the_budget(rope: Rope | None, share: float) -> None:
    source = GroupedQueryAttention(**HEADS, rope=rope, qkv_bias=True)
    budget = CacheBudget(share=share, context=64, given={"latent": "joint"})
    fields = GQAToDBA().propose(source, WIDTH, budget)
    target: Attention = DecoupledBottleneckAttention(rope=rope, **HEADS, **{**fields, **budget.given})
    GQAToDBA().check(source, target, WIDTH)
    assert sum(entry.values for entry in target.cache_spec(WIDTH).values()) == int(share * 48)


def test_the_latents_basis_is_the_one_that_rounding_costs_least_in() -> None:
    """The same latent as before; size times price of its values is the bound, to which only that basis comes."""
    generator = torch.Generator().manual_seed(4)

    def moment(size: int) -> Tensor:
        x = torch.randn(size, size, generator=generator, dtype=torch.float64)
        return x.T @ (torch.logspace(0, -3, size, dtype=torch.float64)[:, None] * x)

    keys = moment(60)
    signal = Signals(gamma=moment(20), omega=moment(40), keys=keys, values=moment(60), mean=torch.zeros(60))
    found = solve(signal.gamma, signal.omega, signal.keys, signal.values, 32)
    even = evenly(found, signal, keys)
    torch.testing.assert_close(even.up @ even.down, found.up @ found.down, rtol=0, atol=1e-9)

    def costs(joint: Joint) -> tuple[Tensor, Tensor]:
        weight = torch.block_diag(signal.gamma, signal.omega)
        return joint.down @ keys @ joint.down.T, joint.up.T @ weight @ joint.up

    second, price = costs(found)
    least = float(torch.linalg.eigvals(second @ price).real.clamp_min(0).sqrt().sum() ** 2) / 32
    second, price = costs(even)
    assert float((second.diagonal() * price.diagonal()).sum()) == pytest.approx(least, rel=0.25)
    second, price = costs(found)
    assert float((second.diagonal() * price.diagonal()).sum()) > 1.5 * least
