"""The least-squares refits: each against its own objective, written plainly and differentiated by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.module import DecoupledBottleneckModule
from caramba_plugins_dba.refine import LogitFit, ValueFit
from caramba_plugins_dba.transplant import GQAToDBA
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.rope import Rope
from caramba_plugins_upcycle.transplant import Calibrated, Example
from dba_conversion import convert, filled, frame, inputs
from torch import Tensor, nn

WIDTH, TOKENS = 40, 24
ROPE = Rope(theta=50.0)
BIASES = dict.fromkeys(("q_bias", "k_bias", "v_bias", "o_bias"), True)


def example_of(teacher: nn.Module, x: Tensor, seen: Tensor) -> Example:
    """What a teacher does with ``x`` beside what its student reads."""
    probe = teacher.probe(x, frame(x))  # type: ignore[operator]
    return Example(x=seen, output=probe.output, positions=probe.positions, probing=lambda: probe)


def setting(
    k_layout: str, biases: dict[str, bool], windows: int = 3, **sizes: int
) -> tuple[DecoupledBottleneckModule, dict[str, Tensor], list[Example]]:
    """A converted module with something missing, the teacher's weights, and calibration windows of both models."""
    source = GroupedQueryAttention(
        n_heads=6, n_kv_heads=2, head_dim=8, rope=ROPE, qkv_bias=bool(biases), o_bias=bool(biases)
    )
    teacher = filled(source, WIDTH, seed=1, dtype=torch.float32)
    target = DecoupledBottleneckAttention(
        n_heads=6,
        n_kv_heads=2,
        head_dim=8,
        k_layout=k_layout,  # type: ignore[arg-type]
        rope=ROPE,
        **{"sem_dim": 4, "geo_dim": 8, "v_dim": 7, **sizes},
        **{"o_bias": True, **biases},  # type: ignore[arg-type]
    )
    x = inputs(windows, TOKENS, WIDTH, seed=2, dtype=torch.float32)
    module, _ = convert(teacher, source, target, x)
    assert isinstance(module, DecoupledBottleneckModule)
    examples = []
    for part in x.split(2):
        with torch.no_grad():
            noisy = part + 0.05 * inputs(len(part), TOKENS, WIDTH, seed=3, dtype=torch.float32)
            examples.append(example_of(teacher, part, noisy))
    return module, dict(teacher.state_dict()), examples


def divergence(module: DecoupledBottleneckModule, examples: list[Example]) -> Tensor:
    """Variance of the logits' error under the teacher's attention, summed over queries, spelled out in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for example in examples:
        x = example.x.double()
        rows = torch.arange(TOKENS)
        ours = module.double().probabilities(x, example.probe.positions, rows).clamp_min(1e-300).log()
        theirs = example.probe.probabilities.double()
        error = torch.where(theirs > 0, ours - theirs.clamp_min(1e-300).log(), 0.0)
        total = total + (theirs * (error - (theirs * error).sum(-1, keepdim=True)) ** 2).sum()
    return total


@pytest.mark.parametrize("k_layout", ["shared", "per_head"])
@pytest.mark.parametrize("biases", [{}, BIASES], ids=["plain", "biases"])
@pytest.mark.parametrize("which", ["queries", "keys"])
def test_logits_are_fitted_to_a_stationary_point(k_layout: str, biases: dict[str, bool], which: str) -> None:
    module, _, examples = setting(k_layout, biases)
    names = [name for name, _ in module.named_parameters() if name.startswith(which[0]) and name.endswith("_proj")]
    before = divergence(module, examples)
    slopes = torch.autograd.grad(before, [getattr(module, name) for name in names])
    module.float()
    fit = LogitFit(module, examples, queries=TOKENS)
    reported = fit.error()
    with torch.no_grad():
        getattr(fit, which)(ridge=1e-6, iterations=200)
    assert fit.error() < reported
    after = divergence(module, examples)
    assert after < before
    left = torch.autograd.grad(after, [getattr(module, name) for name in names])
    for slope, rest in zip(slopes, left, strict=True):
        assert rest.norm() < 0.02 * slope.norm()


def test_the_error_is_the_divergence_over_the_teachers() -> None:
    module, _, examples = setting("shared", {})
    fit = LogitFit(module, examples, queries=TOKENS)
    total = 0.0
    for example in examples:
        p = example.probe.probabilities.double()
        logits = torch.where(p > 0, p.clamp_min(1e-300).log(), 0.0)
        total += float((p * (logits - (p * logits).sum(-1, keepdim=True)) ** 2).sum())
    assert fit.error() == pytest.approx(float(divergence(module, examples)) / total, rel=1e-4)


def output_error(module: DecoupledBottleneckModule, examples: list[Example]) -> float:
    """Share of the teacher's output, centred, that the module misses."""
    with torch.no_grad():
        missed = torch.cat([module(e.x, frame(e.x)) - e.probe.output for e in examples]).flatten(0, 1)
        wanted = torch.cat([e.probe.output for e in examples]).flatten(0, 1)
    return float((missed - missed.mean(0)).square().sum() / (wanted - wanted.mean(0)).square().sum())


@pytest.mark.parametrize("biases", [{}, BIASES], ids=["plain", "biases"])
@pytest.mark.parametrize("v_dim", [5, 9, 15])
def test_values_report_what_the_module_then_misses(biases: dict[str, bool], v_dim: int) -> None:
    module, weights, examples = setting("shared", biases, v_dim=v_dim)
    fit = ValueFit(module, weights, examples, queries=TOKENS)
    before = output_error(module, examples)
    with torch.no_grad():
        report = fit.solve(rounds=4, iterations=20, ridge=1e-6)
    assert report["before"] == pytest.approx(before, rel=1e-4)
    assert report["after"] == pytest.approx(output_error(module, examples), rel=1e-3)
    assert report["after"] < 0.9 * before


def test_values_put_the_mean_of_the_output_right() -> None:
    module, weights, examples = setting("shared", BIASES)
    with torch.no_grad():
        ValueFit(module, weights, examples, queries=TOKENS).solve(rounds=1, iterations=5, ridge=1e-3)
        missed = torch.cat([module(e.x, frame(e.x)) - e.probe.output for e in examples]).flatten(0, 1)
    torch.testing.assert_close(missed.mean(0), torch.zeros(WIDTH), rtol=0, atol=1e-5)


def refined(
    weights: dict[str, torch.Tensor], module: DecoupledBottleneckModule, examples: list[Example]
) -> dict[str, Any]:
    source = GroupedQueryAttention(n_heads=6, n_kv_heads=2, head_dim=8, rope=ROPE)
    seen = Calibrated(config=source, weights=weights, width=WIDTH)
    return dict(GQAToDBA(refits="qkqv").refine(seen, module, examples))


def test_refits_help_on_tokens_that_they_never_saw() -> None:
    module, weights, examples = setting("shared", {}, windows=60)
    unseen = inputs(4, TOKENS, WIDTH, seed=9, dtype=torch.float32)
    source = GroupedQueryAttention(n_heads=6, n_kv_heads=2, head_dim=8, rope=ROPE)
    teacher = filled(source, WIDTH, seed=1, dtype=torch.float32)
    with torch.no_grad():
        tests = [example_of(teacher, unseen, unseen)]
    before = output_error(module, tests)
    report = refined(weights, module, examples)
    assert output_error(module, tests) < before
    assert sorted(report) == ["logits", "values"]
    assert report["logits"] == sorted(report["logits"], reverse=True)


def test_what_loses_nothing_is_left_alone() -> None:
    module, weights, examples = setting("shared", {}, sem_dim=0, geo_dim=16, v_dim=16)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert refined(weights, module, examples) == {}
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
