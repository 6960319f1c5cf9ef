"""The start: exact where nothing is left out, best where something is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caramba_plugins_mla.attention import MultiHeadLatentAttention
from caramba_plugins_mla.start.assemble import _statistics, common_pairs
from caramba_plugins_mla.transplant import GQAToMLA
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.rope import Rope
from caramba_plugins_upcycle.joint_latent import solve
from caramba_plugins_upcycle.shared_rotary import choose, dearness
from caramba_plugins_upcycle.transplant import Calibrated
from mla_conversion import WIDTH, convert, frame, inputs, moments, teacher

from caramba_core.errors import InvalidValue

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


def pair(shape: str, rope: Rope | None, *, rope_dim: int | None = None, rank: int | None = None, **options: Any) -> Any:
    """A source and a target: everything kept unless sizes are given."""
    heads, groups, width = SHAPES[shape]
    sizes: dict[str, Any] = {"n_heads": heads, "n_kv_heads": groups, "head_dim": width, "rope": rope}
    biases = {name: options.pop(name) for name in ("qkv_bias", "o_bias") if name in options}
    own = {name: options.pop(name) for name in ("latent_norm_eps", "layout") if name in options}
    source = GroupedQueryAttention(**sizes, **biases, **options)
    full = groups * width if rope is not None else 0
    target = MultiHeadLatentAttention(
        **sizes,
        rope_dim=full if rope_dim is None else rope_dim,
        rank=2 * groups * width if rank is None else rank,
        q_bias=bool(biases),
        k_bias=bool(biases) and rope is not None and rope_dim != 0,
        o_bias=bool(biases),
        **own,
        **options,
    )
    return source, target


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"qkv_bias": True, "o_bias": True, "scale": 0.5}], ids=["plain", "biases"])
def test_everything_kept_is_the_teacher(shape: str, rope: str, options: dict[str, Any]) -> None:
    config, target = pair(shape, ROPES[rope], **options)
    source = teacher(config)
    module, started = convert(source, target, inputs(2, 33, seed=2))
    x = inputs(3, 41, seed=3)
    torch.testing.assert_close(module(x, frame(x)), source(x, frame(x)), rtol=0, atol=1e-11)
    assert started.report["rotation_lost"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"qkv_bias": True, "o_bias": True}], ids=["plain", "biases"])
def test_no_rotation_and_full_rank_is_the_teacher(shape: str, options: dict[str, Any]) -> None:
    config, target = pair(shape, None, **options)
    source = teacher(config)
    module, _ = convert(source, target, inputs(2, 33, seed=4))
    x = inputs(3, 41, seed=5)
    torch.testing.assert_close(module(x, frame(x)), source(x, frame(x)), rtol=0, atol=1e-11)


@pytest.mark.parametrize("rope_dim", [2, 6, 10, 22])
def test_a_teacher_that_stands_still_may_share_any_part(rope_dim: int) -> None:
    """With one position for all tokens rotation changes nothing: shared key and latent must add up to the keys."""
    config, target = pair("gqa", ROPES["yarn"], rope_dim=rope_dim, qkv_bias=True, o_bias=True)
    source = teacher(config)
    module, _ = convert(source, target, inputs(2, 33, seed=6))
    x = inputs(2, 21, seed=7)
    still = frame(x).__class__(positions=torch.zeros(21, dtype=torch.int64))
    torch.testing.assert_close(module(x, still), source(x, still), rtol=0, atol=1e-11)


def test_shared_components_keep_their_rotation() -> None:
    """Keys of all heads that are turned copies of one another need one component a frequency."""
    generator = torch.Generator().manual_seed(8)
    _, _, width = SHAPES["gqa"]
    config, target = pair("gqa", ROPES["default"], rope_dim=width)
    source = teacher(config)
    half = width // 2
    with torch.no_grad():
        first, second = source.k_proj[:half].clone(), source.k_proj[half:width].clone()
        angle = torch.rand(half, 1, generator=generator, dtype=torch.float64) * 6
        source.k_proj[width : width + half] = 2 * (first * angle.cos() - second * angle.sin())
        source.k_proj[width + half :] = 2 * (second * angle.cos() + first * angle.sin())
    module, started = convert(source, target, inputs(2, 33, seed=9))
    assert sorted(started.weights["pairs"].tolist()) == list(range(half))
    x = inputs(2, 21, seed=10)
    torch.testing.assert_close(module(x, frame(x)), source(x, frame(x)), rtol=0, atol=1e-9)


def test_the_dearest_components_are_kept() -> None:
    config, target = pair("gqa", ROPES["default"])
    gathered = moments(teacher(config), target, inputs(2, 33, seed=11))
    rho = torch.zeros(6, 6, dtype=torch.complex128)
    rho[:, 2] = 1.0  # no head looks beyond the query's own position at this frequency
    shared = choose(gathered["query"]["second"], gathered["key"]["second"], rho, 10)
    assert 2 not in shared.pairs.tolist()
    assert shared.kept == pytest.approx(1.0, abs=1e-4)


def test_the_latent_is_a_minimum() -> None:
    """No small change of the latent's two sides lowers the loss, and one shared measure gives the closed form."""
    generator = torch.Generator().manual_seed(12)

    def moment(size: int) -> torch.Tensor:
        x = torch.randn(3 * size, size, generator=generator, dtype=torch.float64)
        return x.T @ (torch.logspace(0, -3, 3 * size, dtype=torch.float64)[:, None] * x)

    gamma, omega, keys, values = moment(6), moment(6), moment(12), moment(12)

    def loss(up: torch.Tensor, down: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> float:
        error = torch.eye(12, dtype=torch.float64) - up @ down
        lost_keys, lost_values = error @ k @ error.T, error @ v @ error.T
        return float((gamma * lost_keys[:6, :6]).sum() + (omega * lost_values[6:, 6:]).sum())

    found = solve(gamma, omega, keys, values, 4)
    best = loss(found.up, found.down, keys, values)
    for _ in range(50):
        up = found.up + 1e-3 * torch.randn(12, 4, generator=generator, dtype=torch.float64)
        down = found.down + 1e-3 * torch.randn(4, 12, generator=generator, dtype=torch.float64)
        assert loss(up, down, keys, values) > best * (1 - 1e-5)

    same = solve(gamma, omega, keys, keys, 4)
    weight = torch.linalg.cholesky(torch.block_diag(gamma, omega))
    spectrum = torch.linalg.eigvalsh(weight.T @ keys @ weight)
    assert loss(same.up, same.down, keys, keys) == pytest.approx(float(spectrum[:-4].sum()), rel=1e-3)


@torch.no_grad()
def test_more_room_is_never_worse() -> None:
    config, _ = pair("gqa", ROPES["default"])
    source = teacher(config)
    calibration, x = inputs(4, 33, seed=13), inputs(4, 33, seed=13)
    errors = []
    for rope_dim, rank in ((6, 8), (12, 16), (18, 32), (24, 48)):
        module, _ = convert(source, pair("gqa", ROPES["default"], rope_dim=rope_dim, rank=rank)[1], calibration)
        errors.append(float((module(x, frame(x)) - source(x, frame(x))).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-20


@pytest.mark.parametrize(
    ("source", "target", "field"),
    [
        ({}, {"n_kv_heads": 4}, "n_kv_heads"),
        ({}, {"rope": Rope(theta=7.0)}, "rope"),
        ({}, {"rope_dim": 26}, "rope_dim"),
        ({}, {"rank": 49}, "rank"),
        ({}, {"scale": 3.0}, "scale"),
        ({}, {"rope_width": 8}, "rope_width"),
        ({}, {"latent_norm_eps": 1e-5, "rank": 1}, "rank"),
        ({}, {"latent_norm_eps": 1e-5, "rank": 50}, "rank"),
        ({"qk_norm_eps": 1e-5}, {}, None),
        ({"window": 5}, {}, None),
        ({"qkv_bias": True}, {}, "q_bias"),
        ({"o_bias": True}, {}, "o_bias"),
    ],
    ids=str,
)
def test_refuses_what_it_cannot_start(source: dict[str, Any], target: dict[str, Any], field: str | None) -> None:
    heads, groups, width = 4, 2, 12
    sizes: dict[str, Any] = {"n_heads": heads, "n_kv_heads": groups, "head_dim": width, "rope": ROPES["default"]}
    given = GroupedQueryAttention(**{**sizes, **source})
    wanted = MultiHeadLatentAttention(**{**sizes, "rope_dim": 8, "rank": 10, **target})
    with pytest.raises(InvalidValue) as caught:
        GQAToMLA().check(given, wanted, WIDTH)
    assert caught.value.field == field


def with_constant(x: torch.Tensor) -> torch.Tensor:
    """Inputs of which one feature is the same for all tokens, so that a latent can be steady."""
    return torch.cat([x[..., :-1], torch.full_like(x[..., -1:], 0.7)], dim=-1)


@pytest.mark.parametrize("options", [{}, {"qkv_bias": True, "o_bias": True}], ids=["plain", "biases"])
def test_a_normalized_latent_of_full_size_is_nearly_the_teacher(options: dict[str, Any]) -> None:
    """What is left is the share of the norm that the other components make, 1 in 128, where it changes."""
    config, target = pair("gqa", ROPES["yarn"], rank=49, latent_norm_eps=1e-6, **options)
    source = teacher(config)
    module, started = convert(source, target, with_constant(inputs(2, 33, seed=2)))
    x = with_constant(inputs(3, 41, seed=3))
    expected = source(x, frame(x))
    assert (module(x, frame(x)) - expected).square().mean() < 2e-4 * expected.var()
    assert started.report["norm_unsteady"] < 1e-3
    latent = module.kv_down_proj @ x[0].T
    root = latent.square().mean(0).sqrt()
    assert root.std() < 0.02 * root.mean()


def test_the_steady_component_holds_what_values_have_in_common() -> None:
    """Without an offset of the output: the mean of the values that the latent leaves out."""
    config, target = pair("gqa", ROPES["default"], rank=3, latent_norm_eps=1e-6)
    source, x = teacher(config), with_constant(inputs(4, 33, seed=13))
    module, _ = convert(source, target, x)
    with torch.no_grad():
        wrong = module(x, frame(x)) - source(x, frame(x))
        module.v_up_proj[:, 0] = 0.0
        without = module(x, frame(x)) - source(x, frame(x))
    assert wrong.mean((0, 1)).norm() < 0.2 * without.mean((0, 1)).norm()


@pytest.mark.parametrize(("rope_dim", "steps"), [(12, {1}), (6, {1, 2}), (4, {1, 2, 3, 4, 5}), (2, {1})])
def test_servable_pairs_are_at_equal_steps(rope_dim: int, steps: set[int]) -> None:
    config, target = pair("gqa", ROPES["default"], rope_dim=rope_dim, rank=20, latent_norm_eps=1e-6, layout="servable")
    layers = [(target, moments(teacher(config, seed), target, inputs(2, 33, seed=seed))) for seed in (1, 2)]
    pairs = common_pairs(layers)
    step = pairs[1] if len(pairs) > 1 else 1
    assert pairs == tuple(range(0, step * rope_dim // 2, step)) and pairs[-1] < 6 and step in steps
    worth = {
        one: sum(
            float(dearness(*_statistics(target, gathered))[:, 0][: rope_dim // 2 * one : one].sum())
            for _, gathered in layers
        )
        for one in steps
    }
    assert max(worth, key=lambda one: worth[one]) == step
    transplant = GQAToMLA(pairs=pairs)
    transplant.check(config, target, WIDTH)
    gathered = moments(teacher(config), target, inputs(2, 33, seed=1))
    weights = teacher(config).state_dict()
    started = transplant.start(Calibrated(config=config, weights=weights, width=WIDTH, moments=gathered), target)
    assert started.weights["pairs"].tolist() == list(pairs)


def test_pairs_at_other_steps_are_refused() -> None:
    config, target = pair("gqa", ROPES["default"], rope_dim=6, rank=20, latent_norm_eps=1e-6, layout="servable")
    for wrong in ((0, 1), (0, 1, 3), (1, 2, 3), (0, 3, 6)):
        with pytest.raises(InvalidValue, match="are not those of a rotary key"):
            GQAToMLA(pairs=wrong).check(config, target, WIDTH)
