"""What a conversion says before it starts, and that the rehearsal behind it changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.transplant import GQAToDBA
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.gqa_module import GroupedQueryAttentionModule
from caramba_plugins_standard.layers import LinearHead, RMSNorm, SwiGLU, TokenEmbedder
from caramba_plugins_standard.parallel.team import Team
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.topologies import Nested, Residual, Stacked
from caramba_plugins_upcycle import clock
from caramba_plugins_upcycle.calibration import Calibration
from caramba_plugins_upcycle.convert import needs
from caramba_plugins_upcycle.modes import Start
from caramba_plugins_upcycle.transplant import Calibrated, Example, Started
from torch import Tensor, nn

from caramba_core.components import Attention, Model, component
from caramba_core.errors import NumericalStop
from caramba_core.graph import Graph
from caramba_core.lowering import lower
from caramba_core.nn.build import build
from caramba_core.nn.sequence import LayerSequence
from caramba_core.run.student import assemble
from caramba_core.sites import find_sites

HEADS: dict[str, Any] = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "rope": Rope(theta=100.0)}
FREE = DecoupledBottleneckAttention(**HEADS, sem_dim=4, geo_dim=8, v_dim=8, o_bias=True)
SERVABLE = DecoupledBottleneckAttention(
    **HEADS, layout="servable", geo_layout="shared", sem_dim=4, geo_dim=4, v_dim=8, o_bias=True
)
LAYERS = 8


def graph(attention: Attention, layers: int = LAYERS) -> Graph:
    block = Residual(layers=(RMSNorm(), attention)), Residual(layers=(RMSNorm(), SwiGLU(d_ff=24)))
    topology = Stacked(layers=(Nested(layers=block, repeat=layers), RMSNorm()))
    return lower(Model(head=LinearHead(), embedder=TokenEmbedder(vocab_size=32, d_model=16), topology=topology))


def calibration(
    target: Attention = FREE,
    layers: int = LAYERS,
    team: Team | None = None,
    kept: Mapping[str, Tensor] | None = None,
    **start: Any,
) -> Calibration:
    theirs, ours = graph(GroupedQueryAttention(**HEADS), layers), graph(target, layers)
    teacher = build(theirs, dtype=torch.float32, seed=0).requires_grad_(False)
    kind: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32, "seed": 0}
    student = assemble(ours, teacher=teacher, tensors=kept, trained=(), **kind)
    sites = find_sites(theirs, ours)
    return Calibration(teacher=teacher, student=student, sites=sites, settings=Start(**start), team=team or Team())


def windows() -> list[Tensor]:
    return list(torch.randint(32, (7, 12), generator=torch.Generator().manual_seed(0)).split(2))


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def exact(report: Mapping[str, Any]) -> dict[str, Any]:
    """Without the sums of refinements, whose last bits change from call to call, as those of weights do not."""
    return {site: {key: own[key] for key in own if key != "refine"} for site, own in report.items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("target", "start"),
    [
        (FREE, {"refine": True, "refit_mlp": True}),
        (FREE, {"inputs": "student", "refit": False}),
        (SERVABLE, {"refine": True}),  # which is surveyed before
    ],
    ids=["refined", "inputs of the student", "surveyed"],
)
def test_a_rehearsal_changes_nothing(target: Attention, start: dict[str, Any]) -> None:
    plain = calibration(target, **start)
    report = plain.run(windows())
    told = calibration(target, **start)
    before, theirs, random = state(told.student), state(told.teacher), torch.get_rng_state()
    parameters = dict(told.student.named_parameters())
    seconds = told.expected(windows())
    assert seconds is not None
    assert seconds > 0
    assert same(state(told.student), before)
    assert same(state(told.teacher), theirs)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter is parameters[name] for name, parameter in told.student.named_parameters())
    assert not told.clock.seconds
    assert exact(told.run(windows())) == exact(report)
    assert same(state(told.student), state(plain.student))


class StoppedError(Exception):
    """Where a run was to end."""


@pytest.mark.parametrize("at", [0, 3])
def test_going_on_from_the_middle_gives_the_same_bits(at: int) -> None:
    """Behind any stage, though with few attentions left there is no rehearsal."""
    start: dict[str, Any] = {"refine": True, "refit_mlp": True}
    plain = calibration(layers=10, **start)
    wanted = plain.run(windows())
    kept: dict[str, Any] = {}

    def converted(done: int, report: Mapping[str, Any]) -> None:
        if done == 2 * at + 1:
            kept.update(report)
            raise StoppedError

    stopped = calibration(layers=10, **start)
    stopped.converted = converted
    assert stopped.expected(windows()) is not None
    with pytest.raises(StoppedError):
        stopped.run(windows())
    tensors = {f"model.{name}": tensor for name, tensor in stopped.student.state_dict().items()}
    again = calibration(layers=10, kept=tensors, **start)
    assert (again.expected(windows(), 2 * at + 1) is None) is (at == 3)
    assert exact(again.run(windows(), 2 * at + 1, kept)) == exact(wanted)
    assert same(state(again.student), state(plain.student))


def test_few_attentions_are_not_rehearsed() -> None:
    assert calibration(layers=7).expected(windows()) is None


class Ticks:
    """A clock that moves with what is done, and stands still otherwise."""

    def __init__(self) -> None:
        self.now = 0.0

    def moved(self, done: Callable[..., Any], by: float) -> Callable[..., Any]:
        """What is done, so many ticks later."""

        def later(*arguments: Any, **named: Any) -> Any:
            self.now += by
            return done(*arguments, **named)

        return later


def test_an_estimate_is_about_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of steps that take as long as there are tokens, of those that do not, and of a refinement that reads them all."""
    ticks = Ticks()
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: ticks.now))
    for owner, name, by in (
        (LayerSequence, "run", 1.0),
        (GroupedQueryAttentionModule, "probe", 3.0),
        (GQAToDBA, "start", 20.0),
    ):
        monkeypatch.setattr(owner, name, ticks.moved(getattr(owner, name), by))
    monkeypatch.setattr(
        GQAToDBA, "refine", lambda self, seen, module, examples: ticks.moved(dict, 2.0 * len(examples))()
    )
    counted = calibration(refine=True)
    expected = counted.expected(windows())
    rehearsed = ticks.now
    counted.run(windows())
    took = ticks.now - rehearsed
    assert expected == pytest.approx(took, rel=0.1)
    assert rehearsed < 0.2 * took
    assert sum(counted.clock.seconds.values()) == pytest.approx(took, rel=0.05)
    assert {"moments", "starts", "refinements", "sums", "refits", "passes"} == counted.clock.seconds.keys()


@component
class Failing(GQAToDBA):
    """Starts nothing."""

    def start(self, source: Calibrated, target: Attention) -> Started:
        started = super().start(source, target)
        bad = {name: torch.full_like(weight, torch.nan) for name, weight in started.weights.items() if name != "pairs"}
        return Started(weights={**started.weights, **bad})


@component
class Broken(GQAToDBA):
    """Has a mistake."""

    def refine(self, source: Calibrated, module: nn.Module, examples: Sequence[Example]) -> NoReturn:
        raise ZeroDivisionError


@pytest.mark.parametrize(("transplant", "error"), [(Failing(), NumericalStop), (Broken(), ZeroDivisionError)])
def test_why_a_rehearsal_fails_the_conversion_says(transplant: GQAToDBA, error: type[Exception]) -> None:
    failing = calibration(refine=True, transplant=transplant)
    before = state(failing.student)
    assert failing.expected(windows()) is None
    assert same(state(failing.student), before)
    with pytest.raises(error):
        failing.run(windows())


class Alone(Team):
    """Processes that wait for ever."""

    def sum(self, x: Tensor) -> NoReturn:
        raise AssertionError

    def agree(self, *values: int) -> NoReturn:
        raise AssertionError

    def spread(self, tensors: Sequence[Tensor]) -> NoReturn:
        raise AssertionError


def test_no_process_waits_for_another_ones_rehearsal() -> None:
    assert calibration(team=Alone(2, 1), refit_mlp=True).expected(windows()) is not None


@pytest.mark.parametrize(
    ("seconds", "size", "said"),
    [
        (75.4, 41 * 2**30, "takes about 75 s and 41 GiB of memory on cuda"),
        (2000.0, 2**30, "takes about 33 min and 1 GiB of memory on cuda"),
        (12000.0, None, "takes about 3 h 20 min on cuda"),
        (None, 3 * 2**20, "takes about 3 MiB of memory on cuda"),
        (None, None, ""),
    ],
)
def test_what_is_said(seconds: float | None, size: int | None, said: str) -> None:
    assert needs(seconds, size, "cuda") == said
