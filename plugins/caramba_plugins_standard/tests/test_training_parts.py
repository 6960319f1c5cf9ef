"""Optimizers and schedules."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from caramba_plugins_standard.muon_optimizer import orthogonalized
from caramba_plugins_standard.optimizers import SGD, AdamW, Muon
from caramba_plugins_standard.schedules import Constant, Cosine, Linear
from torch import nn

from caramba_core.errors import InvalidValue


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))]


def test_adamw_follows_its_paper() -> None:
    config = AdamW(betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1)
    weights = parameters()
    optimizer = config.create([{"params": weights}], lr=0.01)
    expected = [weight.detach().clone() for weight in weights]
    first = [torch.zeros_like(weight) for weight in weights]
    second = [torch.zeros_like(weight) for weight in weights]
    for step in range(1, 5):
        for index, weight in enumerate(weights):
            gradient = torch.full_like(weight, 0.3) * step
            weight.grad = gradient
            decay = 0.1 if weight.ndim == 2 else 0.0
            first[index] = 0.8 * first[index] + 0.2 * gradient
            second[index] = 0.9 * second[index] + 0.1 * gradient**2
            move = first[index] / (1 - 0.8**step) / ((second[index] / (1 - 0.9**step)).sqrt() + 1e-3)
            expected[index] = expected[index] * (1 - 0.01 * decay) - 0.01 * move
        optimizer.step()
        torch.testing.assert_close([weight.data for weight in weights], expected)
    kept = sum(t.numel() for state in optimizer.state.values() for t in state.values() if t.ndim)
    assert kept == config.state_values() * sum(weight.numel() for weight in weights)


@pytest.mark.parametrize("stack", [1, 2**26])
def test_muon_moves_matrices_and_adamw_the_rest(stack: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's own, one matrix at a time; they are orthogonalized in bfloat16, in another order of products."""
    monkeypatch.setattr("caramba_plugins_standard.muon_optimizer._STACK", stack)
    torch.manual_seed(0)
    shapes = [(3, 4), (4,), (3, 4), (9, 2), (4, 3), (3, 4)]
    weights = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    expected = [nn.Parameter(weight.detach().clone()) for weight in weights]
    optimizer = Muon(momentum=0.9, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1).create([{"params": weights}], lr=0.01)
    matrix = torch.optim.Muon(
        [weight for weight in expected if weight.ndim == 2],
        lr=0.01,
        momentum=0.9,
        weight_decay=0.1,
        adjust_lr_fn="match_rms_adamw",
        nesterov=True,
    )
    vector = torch.optim.AdamW(expected[1:2], lr=0.01, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.0)
    before = [weight.detach().clone() for weight in weights]
    for step in range(1, 5):
        for group in (*optimizer.param_groups, *matrix.param_groups, *vector.param_groups):
            group["lr"] = 0.01 / step  # as the loop does it
        for ours, theirs in zip(weights, expected, strict=True):
            ours.grad = torch.randn(ours.shape)
            theirs.grad = ours.grad.clone()
        for one in (optimizer, matrix, vector):
            one.step()
        for ours, theirs, first in zip(weights, expected, before, strict=True):
            assert (ours - theirs).norm() <= 0.01 * (theirs - first).norm()


@pytest.mark.parametrize("shape", [(3, 4, 9), (2, 9, 4), (1, 5, 5)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    y = orthogonalized(x)
    values = torch.linalg.svdvals(y)
    assert values.min() > 0.5
    assert values.max() < 1.5
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    assert ((u @ vh) * y).sum() > 0.9 * y.square().sum() ** 0.5 * (u @ vh).square().sum() ** 0.5


def test_muon_goes_on_from_its_state() -> None:
    config, weights, again = Muon(), parameters(), parameters()
    whole, resumed = (config.create([{"params": ws}], lr=0.01) for ws in (weights, again))
    for step in range(4):
        if step == 2:
            for old, new in zip(weights, again, strict=True):
                new.data.copy_(old.data)
                resumed.state[new] = {name: value.clone() for name, value in whole.state[old].items()}
        for optimizer, ws in ((whole, weights), (resumed, again)):
            for weight in ws:
                weight.grad = torch.full_like(weight, 0.3) + step * weight.detach()
            if optimizer is whole or step >= 2:
                optimizer.step()
    torch.testing.assert_close([w.data for w in weights], [w.data for w in again], rtol=0, atol=0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd(momentum: float) -> None:
    config = SGD(momentum=momentum, weight_decay=0.1)
    weights = parameters()
    optimizer = config.create([{"params": weights[:1]}, {"params": weights[1:]}], lr=0.01)
    expected, speed = [weight.detach().clone() for weight in weights], [torch.zeros_like(weight) for weight in weights]
    for _ in range(3):
        for index, weight in enumerate(weights):
            weight.grad = torch.full_like(weight, 0.3)
            gradient = weight.grad + (0.1 * expected[index] if weight.ndim == 2 else 0.0)
            speed[index] = momentum * speed[index] + gradient
            expected[index] = expected[index] - 0.01 * speed[index]
        optimizer.step()
        torch.testing.assert_close([weight.data for weight in weights], expected)
    kept = sum(t.numel() for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor))
    assert kept == config.state_values() * sum(weight.numel() for weight in weights)


def test_group_settings_stay() -> None:
    one, two = parameters()
    groups = [{"params": [one, two], "lr": 0.5}]
    for decay, count in ((0.0, 1), (0.1, 2)):
        optimizer = AdamW(weight_decay=decay).create(groups, lr=0.01)
        assert [group["lr"] for group in optimizer.param_groups] == [0.5] * count
        assert [len(group["params"]) for group in optimizer.param_groups] == [2 // count] * count


SCHEDULES: list[tuple[Any, int, list[float]]] = [
    (Constant(), 4, [1, 1, 1, 1]),
    (Constant(warmup=2), 4, [0.5, 1, 1, 1]),
    (Constant(warmup=0.5), 8, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
    (Linear(), 4, [1, 0.75, 0.5, 0.25]),
    (Linear(final=0.2, warmup=1), 5, [1, 1, 0.8, 0.6, 0.4]),
    (Cosine(), 4, [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]),
    (Cosine(final=0.5), 2, [1, 0.75]),
    (Cosine(warmup=10), 3, [0.1, 0.2, 0.3]),
    (Linear(warmup=0.01), 3, [1, 1, 0.5]),
    (Cosine(), 1, [1]),
    (Cosine(warmup=1), 1, [1]),
]


@pytest.mark.parametrize(("schedule", "steps", "factors"), SCHEDULES, ids=lambda value: repr(value)[:40])
def test_schedules(schedule: Any, steps: int, factors: list[float]) -> None:
    assert [schedule.factor(step, steps) for step in range(steps)] == pytest.approx(factors)


@pytest.mark.parametrize(
    ("kind", "fields", "field"),
    [
        (AdamW, {"betas": (0.9, 1.0)}, "betas"),
        (AdamW, {"eps": 0.0}, "eps"),
        (AdamW, {"weight_decay": -0.1}, "weight_decay"),
        (SGD, {"momentum": 1.0}, "momentum"),
        (SGD, {"momentum": 0.0, "nesterov": True}, "nesterov"),
        (Constant, {"warmup": 2.5}, "warmup"),
        (Constant, {"warmup": -1}, "warmup"),
        (Linear, {"final": 1.5}, "final"),
        (Cosine, {"final": -0.1}, "final"),
    ],
)
def test_values_that_do_not_fit_are_refused(kind: Any, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        kind(**fields)
    assert caught.value.field == field


@pytest.mark.parametrize("tables", ["adamw", "muon"])
def test_muon_leaves_embedder_and_head_to_adamw(tables: Literal["adamw", "muon"]) -> None:
    """Unless it is told otherwise; a step of theirs is AdamW's."""
    weights, again = parameters(), parameters()
    optimizer = Muon(tables=tables).create([{"params": weights, "tables": True}], lr=0.01)
    other = torch.optim.AdamW(again, lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    for weight, same in zip(weights, again, strict=True):
        weight.grad = torch.randn_like(weight)
        same.grad = weight.grad.clone()
    optimizer.step()
    other.step()
    for weight, same in zip(weights, again, strict=True):
        assert torch.allclose(weight, same, atol=1e-7) == (tables == "adamw" or weight.ndim != 2)
