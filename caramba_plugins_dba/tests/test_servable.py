"""The start of shared rotary keys and of servable models: one list of pairs for all layers, exact at full width."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from caramba_plugins_dba.absorbed import absorbed
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.module import DecoupledBottleneckModule
from caramba_plugins_dba.refine import LogitFit, ValueFit
from caramba_plugins_dba.start import common_pairs
from caramba_plugins_dba.transplant import GQAToDBA
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.layers import LinearHead, RMSNorm, SwiGLU, TokenEmbedder
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.rotary import mean_rotation
from caramba_plugins_standard.topologies import Nested, Residual, Stacked
from caramba_plugins_upcycle.calibration import Calibration
from caramba_plugins_upcycle.modes import Start
from caramba_plugins_upcycle.shared_rotary import dearness
from caramba_plugins_upcycle.transplant import Calibrated, Example, find_transplants
from dba_conversion import convert, filled, frame, gather_moments, inputs
from torch import Tensor

from caramba_core.components import Model
from caramba_core.errors import InputError, InvalidValue
from caramba_core.graph import Graph
from caramba_core.lowering import lower
from caramba_core.nn.build import build, initialize
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel
from caramba_core.run.student import assemble
from caramba_core.sites import find_sites

WIDTH = 48
ROPES = {
    "default": Rope(theta=100.0),
    "yarn": Rope(theta=100.0, scaling="yarn", factor=8.0, original_max_position_embeddings=32),
}
HEADS: dict[str, Any] = {"n_heads": 8, "n_kv_heads": 4, "head_dim": 6}
"""24 values of keys, 12 pairs."""


def pair(rope: Rope, biases: bool = False, **sizes: Any) -> tuple[GroupedQueryAttention, DecoupledBottleneckAttention]:
    source = GroupedQueryAttention(**HEADS, rope=rope, qkv_bias=biases, o_bias=biases)
    offsets = dict.fromkeys(("q_bias", "k_bias", "v_bias", "o_bias"), biases)
    shared = {"geo_layout": "shared", "rope": rope, **HEADS, **offsets}
    return source, DecoupledBottleneckAttention(**{**shared, "geo_dim": 24, "sem_dim": 0, "v_dim": 24, **sizes})


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("biases", [False, True], ids=["plain", "biases"])
def test_all_components_rotary_is_the_teacher(rope: str, groups: int, biases: bool) -> None:
    source, target = pair(ROPES[rope], biases, groups=groups, layout="servable")
    module, x = filled(source, WIDTH, seed=1), inputs(2, 33, WIDTH, seed=2)
    converted, started = convert(module, source, target, x)
    fresh = inputs(3, 41, WIDTH, seed=3)
    torch.testing.assert_close(converted(fresh, frame(fresh)), module(fresh, frame(fresh)), rtol=0, atol=1e-11)
    each = 4 // groups
    assert started.report["pairs"] == [[pair for pair in range(3) for _ in range(each)]] * groups
    assert absorbed(target, converted.state_dict()).width == 24 // groups


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize(("groups", "geo"), [(1, 2), (1, 10), (2, 4), (2, 12), (4, 8)])
def test_what_moves_loses_its_rotation_alone(rope: str, groups: int, geo: int) -> None:
    """At one position nothing turns: with all that is left in semantic keys, nothing is lost there."""
    source, target = pair(ROPES[rope], True, groups=groups, geo_dim=geo, sem_dim=24 - geo)
    module, x = filled(source, WIDTH, seed=1), inputs(2, 33, WIDTH, seed=2)
    converted, started = convert(module, source, target, x)
    fresh = inputs(3, 41, WIDTH, seed=3)
    here = Frame(positions=torch.zeros(41, dtype=torch.int64))
    torch.testing.assert_close(converted(fresh, here), module(fresh, here), rtol=0, atol=1e-10)
    assert not torch.allclose(converted(fresh, frame(fresh)), module(fresh, frame(fresh)), atol=1e-3)
    assert started.report["semantic_lost"] == pytest.approx(0, abs=1e-10)


def test_components_of_several_heads_lose_less_rotation_than_pairs_of_single_heads() -> None:
    source, target = pair(ROPES["default"], geo_dim=8, sem_dim=4, v_dim=10)
    single = attrs.evolve(target, geo_layout="per_head")
    module, x = filled(source, WIDTH, seed=1), inputs(4, 33, WIDTH, seed=2)
    lost = [convert(module, source, each, x)[1].report["rotation_lost"] for each in (target, single)]
    assert lost[0] < 0.9 * lost[1]


# ------------------------------------------------------------------------------------------------ whole models

LAYERS, VOCABULARY = 3, 32
SMALL: dict[str, Any] = {**HEADS, "rope": Rope(theta=50.0)}
"""Rows of very different size make layers differ in what they need."""
SERVABLE = DecoupledBottleneckAttention(
    **SMALL, layout="servable", geo_layout="shared", sem_dim=4, geo_dim=8, v_dim=12, o_bias=True
)


def graph(attention: Any, *others: Any) -> Graph:
    """Blocks with an attention; ``others`` stand in those behind the first."""
    block, *variants = (
        (Residual(layers=(RMSNorm(), each)), Residual(layers=(RMSNorm(), SwiGLU(d_ff=24))))
        for each in (attention, *others)
    )
    order = tuple(range(len(others) + 1)) if others else ()
    blocks = Nested(layers=block, repeat=LAYERS, variants=tuple(variants), order=order)
    topology = Stacked(layers=(blocks, RMSNorm()))
    return lower(
        Model(head=LinearHead(), embedder=TokenEmbedder(vocab_size=VOCABULARY, d_model=WIDTH), topology=topology)
    )


@pytest.fixture(scope="module")
def teacher() -> LanguageModel:
    model = build(graph(GroupedQueryAttention(**SMALL)), device=torch.device("cpu"), dtype=torch.float32)
    initialize(model, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0 * torch.randn(len(parameter), *(1,) * (parameter.dim() - 1), generator=generator).exp())
    return model.requires_grad_(False)


def student_of(
    teacher: LanguageModel, *attentions: Any, **transplant: Any
) -> tuple[LanguageModel, dict[str, Any], int]:
    """The student, the report, and the tokens of progress."""
    wanted = graph(*attentions)
    student = assemble(
        wanted, teacher=teacher, tensors=None, trained=(), device=torch.device("cpu"), dtype=torch.float32, seed=0
    )
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(VOCABULARY, (4, 40), generator=generator) for _ in range(2)]
    settings = Start(transplant=GQAToDBA(**transplant), refine=True)
    seen: list[int] = []
    run = Calibration(
        teacher=teacher,
        student=student,
        sites=find_sites(teacher.graph, wanted),
        settings=settings,
        progress=seen.append,
    )
    return student, run.run(batches), sum(seen)


@pytest.mark.parametrize("groups", [1, 2])
def test_one_list_of_pairs_for_all_layers_and_groups(teacher: LanguageModel, groups: int) -> None:
    student, _, seen = student_of(teacher, attrs.evolve(SERVABLE, groups=groups))
    free, _, less = student_of(teacher, attrs.evolve(SERVABLE, groups=groups, layout="free"))
    assert seen == 2 * less, "a survey is a pass of its own"
    lists = [student.get_buffer(f"blocks.{index}.attention.pairs").tolist() for index in range(LAYERS)]
    assert lists == [[lists[0][0]] * groups] * LAYERS
    own = [free.get_buffer(f"blocks.{index}.attention.pairs").tolist() for index in range(LAYERS)]
    assert any(pairs != [lists[0][0]] * groups for pairs in own)
    forms = [
        absorbed(student.get_submodule(f"blocks.{index}.attention").config, layer.state_dict())  # type: ignore[arg-type]
        for index in range(LAYERS)
        for layer in [student.get_submodule(f"blocks.{index}.attention")]
    ]
    assert len({(form.heads, form.groups, form.width, form.frequencies) for form in forms}) == 1


def test_the_list_is_the_one_that_costs_least(teacher: LanguageModel) -> None:
    source, target = GroupedQueryAttention(**SMALL), SERVABLE
    layers, total = [], torch.zeros(3, 4, dtype=torch.float64)
    for seed in range(3):
        x = inputs(2, 33, WIDTH, seed=seed)
        moments = gather_moments(filled(source, WIDTH, seed=seed), source, target, x)
        layers.append((source, target, moments))
        rho = mean_rotation(moments["distance"]["attention"], torch.tensor(SMALL["rope"].frequencies(6)).double())
        total += dearness(moments["query"]["second"], moments["key"]["second"], rho)
    best = max(
        (float(sum(total[pair, : counts[pair]].sum() for pair in range(3))), counts)
        for counts in [(a, b, 4 - a - b) for a in range(5) for b in range(5 - a)]
    )
    assert common_pairs(layers) == tuple(pair for pair in range(3) for _ in range(best[1][pair]))


def test_given_pairs_need_no_survey(teacher: LanguageModel) -> None:
    student, report, _ = student_of(teacher, SERVABLE, pairs=(0, 0, 1, 2))
    for index in range(LAYERS):
        assert student.get_buffer(f"blocks.{index}.attention.pairs").tolist() == [[0, 0, 1, 2]]
        assert report[f"model.blocks.{index}.attention"]["start"]["pairs"] == [[0, 0, 1, 2]]


def test_other_layouts_in_the_same_model_choose_for_themselves(teacher: LanguageModel) -> None:
    free = attrs.evolve(SERVABLE, layout="free", geo_dim=6, sem_dim=6)
    student, _, _ = student_of(teacher, SERVABLE, free, SERVABLE)
    lists = [student.get_buffer(f"blocks.{index}.attention.pairs").tolist()[0] for index in range(LAYERS)]
    assert lists[0] == lists[2]
    assert [len(pairs) for pairs in lists] == [4, 3, 4]
    with pytest.raises(InvalidValue, match="these are of layout: servable"):
        GQAToDBA(pairs=(0, 1, 2)).check(GroupedQueryAttention(**SMALL), free, WIDTH)


@pytest.mark.parametrize("pairs", [(0, 1, 2), (0, 0, 2, 1), (0, 0, 1, 3), (-1, 0, 1, 2)], ids=str)
def test_pairs_that_cannot_be(pairs: tuple[int, ...]) -> None:
    with pytest.raises(InvalidValue, match="are not those of a rotary key"):
        GQAToDBA(pairs=pairs).check(GroupedQueryAttention(**SMALL), SERVABLE, WIDTH)
    source, narrow = pair(SMALL["rope"], layout="servable", groups=4, geo_dim=16, sem_dim=8, v_dim=24)
    with pytest.raises(InvalidValue, match="are not those of a rotary key of 4") as caught:
        GQAToDBA(pairs=(0, 0)).check(source, narrow, WIDTH)
    assert caught.value.expected == "2 ascending numbers below 3, each at most 1 times"


def test_sizes_by_layer_are_refused_with_a_sentence(teacher: LanguageModel) -> None:
    wanted = graph(SERVABLE, attrs.evolve(SERVABLE, sem_dim=6, v_dim=14), SERVABLE)
    with pytest.raises(InputError, match=r"sem_dim: 6 in one layer and 4 in another: an ordinary attention") as caught:
        find_transplants(find_sites(teacher.graph, wanted), None)
    assert "layout: free" in str(caught.value)
    with pytest.raises(InputError, match="one size in all of them"):
        GQAToDBA().size_curves(Calibrated(config=GroupedQueryAttention(**SMALL), weights={}, width=0), SERVABLE)


@pytest.mark.parametrize("change", [{"selection": "norm"}, {"fold": "phase"}, {"weighting": "none"}], ids=str)
def test_controls_of_single_pairs_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue, match="pairs of single heads"):
        GQAToDBA(**change).check(GroupedQueryAttention(**SMALL), SERVABLE, WIDTH)


# ------------------------------------------------------------------------------------------------ refits of groups


def groups_of(groups: int) -> tuple[DecoupledBottleneckModule, dict[str, Tensor], list[Example]]:
    source, target = pair(Rope(theta=50.0), True, groups=groups, geo_dim=8, sem_dim=8, v_dim=12)
    teacher = filled(source, WIDTH, seed=1, dtype=torch.float32)
    x = inputs(5, 24, WIDTH, seed=2, dtype=torch.float32)
    module, _ = convert(teacher, source, target, x)
    assert isinstance(module, DecoupledBottleneckModule)
    with torch.no_grad():
        probe = teacher.probe(x, frame(x))  # type: ignore[operator]
    seen = x + 0.05 * inputs(5, 24, WIDTH, seed=3, dtype=torch.float32)
    example = Example(x=seen, output=probe.output, positions=probe.positions, probing=lambda: probe)
    return module, dict(teacher.state_dict()), [example]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_values_of_groups_are_fitted_to_a_stationary_point(groups: int) -> None:
    module, weights, (example,) = groups_of(groups)
    wanted = example.output - example.output.mean((0, 1))

    def missed() -> Tensor:
        y = module(example.x, frame(example.x))
        return (y - y.mean((0, 1)) - wanted).square().sum() / wanted.square().sum()

    before = missed()
    slope = torch.autograd.grad(before, [module.v_up_proj])[0]
    with torch.no_grad():
        fit = ValueFit(module, weights, [example], queries=24).solve(rounds=30, iterations=40, ridge=1e-6)
    after = missed()
    assert fit["before"] == pytest.approx(before.item(), rel=1e-3)
    assert fit["after"] == pytest.approx(after.item(), rel=1e-2)
    assert after < 0.9 * before
    assert torch.autograd.grad(after, [module.v_up_proj])[0].norm() < 0.1 * slope.norm()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("which", ["queries", "keys"])
def test_logits_of_groups_are_fitted(groups: int, which: str) -> None:
    module, _, (example,) = groups_of(groups)

    def error() -> float:
        with torch.no_grad():
            ours = module.probabilities(example.x, example.positions, torch.arange(24)).clamp_min(1e-30).log()
        theirs = example.probe.probabilities
        left = torch.where(theirs > 0, ours - theirs.clamp_min(1e-30).log(), 0.0)
        return float((theirs * (left - (theirs * left).sum(-1, keepdim=True)) ** 2).sum())

    before = error()
    fit = LogitFit(module, [example], queries=24)
    reported = fit.error()
    with torch.no_grad():
        getattr(fit, which)(ridge=1e-6, iterations=30)
    assert error() / before == pytest.approx(fit.error() / reported, rel=1e-2)
    assert fit.error() < 0.9 * reported
