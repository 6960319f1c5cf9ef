"""Starting the student's attentions from the teacher's: one pass over calibration tokens, no gradient step.

Teacher and student run in lockstep, a stage at a time.  At each site the teacher is probed, the moments are collected,
the transplant starts the student's attention, and its output projection is refitted on the student's own inputs, which
have passed through everything converted and refitted so far.  The layers between may be refitted in the same way.

The student's hidden states in front of a layer differ from the teacher's by then.  Where the layer's output is added to
those states, part of their error can be made good in the same place: with ``x`` and ``x'`` the states of teacher and
student and ``f(x)`` the teacher's output, the projection is refitted to ``f(x) + share (x - x')``.  The whole of it is
too much: what one layer's inputs cannot explain it would fit to noise.

A transplant that has to know all of its sites before it starts the first one surveys the teacher in a pass of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import attrs
import torch
from caramba_plugins_standard.parallel.team import Team
from torch import Tensor, nn

from caramba_core.components import Attention, Layer
from caramba_core.errors import NumericalStop, PluginError
from caramba_core.graph import ROOT, local_name
from caramba_core.nn.build import load_object
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel
from caramba_core.sites import Site
from caramba_plugins_upcycle.clock import PER_TOKEN, Clock
from caramba_plugins_upcycle.modes import Start
from caramba_plugins_upcycle.moments.collectors import MeanCollector
from caramba_plugins_upcycle.refit import output_weights, refit_output
from caramba_plugins_upcycle.stages import Stage, adds_to_stream, input_of, stages
from caramba_plugins_upcycle.transplant import (
    Calibrated,
    Collector,
    Example,
    Moment,
    Transplant,
    find_transplants,
    require_refittable,
)

__all__ = ["Calibration", "collectors_of", "fill"]

_FEWEST: Final = 8
"""Attentions that are left where one is converted to tell how long all of them take."""


@attrs.frozen
class _Batch:
    """Hidden states of some calibration windows in both models: ``[B, T, D]`` each."""

    frame: Frame
    teacher: Tensor
    student: Tensor

    @property
    def drifted(self) -> bool:
        """Whether something converted lies behind these states."""
        return self.teacher is not self.student


@attrs.define(kw_only=True, slots=False)
class Calibration:
    """The conversion of a whole student; :meth:`run` fills it and returns a report, one entry a site.

    ``converted`` is called behind each stage with how many are done and the report on them; it may raise.  Each process
    of a ``team`` has calibration windows of its own: sums over windows are pooled, and the student becomes the same.
    """

    teacher: LanguageModel
    student: LanguageModel
    sites: tuple[Site, ...]
    settings: Start
    progress: Callable[[int], None] = lambda tokens: None
    converted: Callable[[int, Mapping[str, Any]], None] = lambda stages, report: None
    team: Team = attrs.field(factory=Team)

    def __attrs_post_init__(self) -> None:
        self.clock = Clock(next(self.student.parameters()).device)
        self.found = find_transplants(self.sites, self.settings.transplant)
        for site in self.sites if self.settings.refit else ():
            module = self.student.get_submodule(local_name(site.name))
            require_refittable(site, [] if hasattr(module, "mix") else ["mix()"])

    @property
    def passes(self) -> int:
        """How often :meth:`run` takes the windows through each stage."""
        return 1 + sum(1 for transplant, sites in self.found if transplant.survey(sites))

    @torch.no_grad()
    def run(self, batches: list[Tensor], done: int = 0, report: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Convert every site, given calibration windows int64 ``[B, T]`` each.

        The student's first ``done`` stages are converted already, and ``report`` tells of them.
        """
        self.transplants: dict[str, Transplant] = {}
        for transplant, sites in self.found:
            ready = self._surveyed(transplant, sites, batches)
            self.transplants.update((site.name, ready) for site in sites)
        states = []
        for tokens in batches:
            x = self.teacher.embedder(tokens)
            states.append(_Batch(Frame.of(tokens), x, x))
        report = dict(report or {})
        for number, (old, new) in enumerate(self._pairs(), 1):
            report |= self._take(old, new, states, converts=number > done)
            if number > done:
                self.converted(number, report)
        return report

    @torch.no_grad()
    def expected(self, batches: list[Tensor], done: int = 0) -> float | None:
        """About how many seconds :meth:`run` will take, by a rehearsal, after which the student is as before.

        With one batch of windows the first attention that is left is converted, and what follows it up to the next one;
        only its refinement takes as many as there are, all of them that one.  ``None`` where few attentions are left,
        so that a rehearsal would not be a small part of the whole, or where it fails: why, the conversion will say.
        """
        pairs = self._pairs()
        places = [place for place, (_, new) in enumerate(pairs) if any(new.holds(site.name) for site in self.sites)]
        left = [place for place in places if place >= done]
        if len(left) < _FEWEST:
            return None
        part = pairs[left[0] : left[1]]
        first, device = batches[0], batches[0].device
        own, team = self.clock, self.team
        self.transplants = {site.name: transplant for transplant, sites in self.found for site in sites}
        self.team = Team()  # each process for itself: none waits for another one that failed
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                if device.type == "cuda":  # the first kernels and libraries are loaded
                    self._rehearse(first, 1, pairs, part)
                self.clock = Clock(device)
                self._rehearse(first, len(batches), pairs, part)
                seconds = self.clock.seconds
        except Exception:  # noqa: BLE001 - whatever a transplant raises
            return None
        finally:
            self.clock, self.team = own, team
        surveyed = [sites for transplant, sites in self.found if transplant.survey(sites)]
        counts: dict[str, float] = {
            "survey": sum(map(len, surveyed)) / max(1, len(surveyed)),
            "passes": len(pairs) / len(part) * (1 + len(surveyed) / 2),  # a survey goes through the teacher alone
        }
        times = sum(tokens.numel() for tokens in batches) / first.numel()
        return sum(
            each * counts.get(name, len(left)) * (times if name in PER_TOKEN else 1) for name, each in seconds.items()
        )

    def _rehearse(
        self, tokens: Tensor, batches: int, pairs: list[tuple[Stage, Stage]], part: list[tuple[Stage, Stage]]
    ) -> None:
        """Convert ``part`` of the stages with one batch and undo it; survey one site of what asks for it."""
        frame, x = Frame.of(tokens), self.teacher.embedder(tokens)
        states = [_Batch(frame, x, x.clone())]  # as behind a conversion: two models to take through
        with _unchanged(self.student, [site for site in self.sites if part[0][1].holds(site.name)]):
            for old, new in part:
                self._take(old, new, states, refined=batches)
        for transplant, sites in self.found:
            if wanted := transplant.survey(sites):
                stage = next(old for old, _ in pairs if old.holds(sites[0].name))
                self._gathered(wanted, sites[0], stage, [(frame, x)])

    def _pairs(self) -> list[tuple[Stage, Stage]]:
        return list(zip(stages(self.teacher), stages(self.student), strict=True))

    def _take(
        self, old: Stage, new: Stage, states: list[_Batch], *, converts: bool = True, refined: int = 1
    ) -> dict[str, Any]:
        """Take the hidden states through a stage of both models, which ``converts`` before; what there is to report.

        A refinement sees each of them ``refined`` times.
        """
        report: dict[str, Any] = {}
        here = [site for site in self.sites if new.holds(site.name)]
        for site in here if converts else ():
            report[site.name] = self._convert(site, old, new, states, refined)
        with self.clock.phase("passes"):
            after = [old.run(batch.teacher, batch.frame) for batch in states]
        if self.settings.refit_mlp and not here and states[0].drifted and converts:
            report.update(self._refit_between(old, new, states, after))
        with self.clock.phase("passes"):
            for index, (batch, y) in enumerate(zip(states, after, strict=True)):
                z = new.run(batch.student, batch.frame) if batch.drifted or here else y
                states[index] = _Batch(batch.frame, y, z)
                self.progress(batch.frame.positions.numel() * y.shape[0])
        return report

    def _surveyed(self, transplant: Transplant, sites: list[Site], batches: list[Tensor]) -> Transplant:
        """The transplant with what its sites have in common, from the moments that it asks for of each."""
        wanted = transplant.survey(sites)
        if not wanted:
            return transplant
        states = [(Frame.of(tokens), self.teacher.embedder(tokens)) for tokens in batches]
        moments: dict[str, Mapping[str, Mapping[str, Tensor]]] = {}
        for stage in stages(self.teacher):
            for site in sites:
                if not stage.holds(site.name):
                    continue
                moments[site.name] = self._gathered(wanted, site, stage, states)
            with self.clock.phase("passes"):
                states = [(frame, stage.run(x, frame)) for frame, x in states]
            self.progress(sum(tokens.numel() for tokens in batches))
        return transplant.surveyed(sites, [moments[site.name] for site in sites])

    def _gathered(
        self, wanted: Mapping[str, Moment], site: Site, stage: Stage, states: list[tuple[Frame, Tensor]]
    ) -> dict[str, Mapping[str, Tensor]]:
        """The moments of one of the teacher's attentions, given the hidden states in front of its stage."""
        module: Any = self.teacher.get_submodule(local_name(site.name))
        assert isinstance(site.teacher.config, Attention)
        with self.clock.phase("survey"):
            collectors = collected(wanted, site.teacher.config, site.student.width_in)
            for frame, x in states:
                probe = module.probe(input_of(module, stage, x, frame), frame)
                for collector in collectors.values():
                    collector.update(probe)
                del probe  # the largest there is, before the next
            return results(collectors, self.team)

    def _convert(self, site: Site, old: Stage, new: Stage, states: list[_Batch], refined: int) -> dict[str, Any]:
        """Start, refine and refit one attention; the hidden states stay those in front of the stage."""
        source, target = site.teacher.config, site.student.config
        assert isinstance(source, Attention)
        assert isinstance(target, Attention)
        path = site.name.removeprefix(f"{ROOT}.")
        teacher: Any = self.teacher.get_submodule(path)  # has probe(), the student mix()
        student: Any = self.student.get_submodule(path)
        width = site.student.width_in
        transplant = self.transplants[site.name]
        examples: list[Example] = []
        with self.clock.phase("moments"):
            collectors = collectors_of(transplant, source, target, width)
            for batch in states:
                teacher_x = input_of(teacher, old, batch.teacher, batch.frame)
                student_x = teacher_x if not batch.drifted else input_of(student, new, batch.student, batch.frame)
                probe = teacher.probe(teacher_x, batch.frame)
                probing = partial(teacher.probe, teacher_x, batch.frame)
                examples.append(Example(x=student_x, output=probe.output, positions=probe.positions, probing=probing))
                if self.settings.inputs == "student" and batch.drifted:
                    probe = teacher.probe(student_x, batch.frame)
                for collector in collectors.values():
                    collector.update(probe)
                del probe  # the largest there is, before the next
            moments = results(collectors, self.team)
        with self.clock.phase("starts"):
            weights = {name: tensor.detach().float() for name, tensor in teacher.state_dict().items()}
            seen = Calibrated(config=source, weights=weights, width=width, moments=moments)
            started = transplant.start(seen, target)
            fill(site.name, student, started.weights)
            self.team.spread(list(student.state_dict().values()))
        report: dict[str, Any] = {"start": dict(started.report)}
        if self.settings.refine:
            with self.clock.phase("refinements"):
                report["refine"] = dict(transplant.refine(seen, student, examples * refined))
        if self.settings.refit:
            first = states[0]
            adds = self._adds(teacher, old, first) if first.drifted else False
            wanted = self._corrected((example.output for example in examples), states, adds)
            mixed = (student.mix(example.x, batch.frame) for example, batch in zip(examples, states, strict=True))
            pairs = zip(mixed, wanted, strict=True)
            report["refit"] = refit_output(
                target, student, pairs, self.settings.ridge, clock=self.clock, team=self.team
            )
        return report

    def _adds(self, teacher: nn.Module, stage: Stage, batch: _Batch) -> bool:
        return any(self.team.agree(adds_to_stream(teacher, stage, batch.teacher, batch.frame)))

    def _corrected(self, outputs: Iterable[Tensor], states: list[_Batch], adds: bool) -> Iterator[Tensor]:
        """The teacher's outputs, with a share of the states' error where outputs are added to the states."""
        for output, batch in zip(outputs, states, strict=True):
            yield output + self.settings.compensate * (batch.teacher - batch.student) if adds else output

    def _refit_between(self, old: Stage, new: Stage, states: list[_Batch], after: list[Tensor]) -> dict[str, Any]:
        """Refit the layers of a stage without a site that can be: their inputs are the student's by now.

        ``after`` is what the teacher's stage made of its states.
        """
        report: dict[str, Any] = {}
        for name in new.names:
            path = name.removeprefix(f"{ROOT}.")
            teacher, student = self.teacher.get_submodule(path), self.student.get_submodule(path)
            config = getattr(student, "config", None)
            if not isinstance(config, Layer) or output_weights(config, student) is None:
                continue
            adds = self._adds(teacher, old, states[0])
            outputs = (
                y - batch.teacher if adds else teacher(input_of(teacher, old, batch.teacher, batch.frame), batch.frame)
                for batch, y in zip(states, after, strict=True)
            )
            mix: Any = student.mix
            mixed = (mix(input_of(student, new, batch.student, batch.frame), batch.frame) for batch in states)
            wanted = self._corrected(outputs, states, adds)
            pairs = zip(mixed, wanted, strict=True)
            # wide layers, and a ridge far above the rounding of products in float32
            ridge = self.settings.mlp_ridge
            refit = refit_output(
                config, student, pairs, ridge, clock=self.clock, products=torch.float32, team=self.team
            )
            report[name] = {"refit": refit}
        return report


@contextmanager
def _unchanged(student: LanguageModel, sites: Iterable[Site]) -> Iterator[None]:
    """A block that may write into the weights of sites, and give any module other parameters: all is undone."""
    held = [
        (module, name, parameter)
        for module in student.modules()
        for name, parameter in module.named_parameters(recurse=False)
    ]
    own = [student.get_submodule(local_name(site.name)).state_dict(keep_vars=True) for site in sites]
    values = [(tensor, tensor.detach().clone()) for tensors in own for tensor in tensors.values()]
    try:
        yield
    finally:
        for module, name, parameter in held:
            setattr(module, name, parameter)
        for tensor, value in values:
            tensor.copy_(value)


def collectors_of(transplant: Transplant, source: Attention, target: Attention, width: int) -> dict[str, Collector]:
    """A collector for each of the moments that a transplant asks for."""
    return collected(transplant.moments(source, target), source, width)


def collected(moments: Mapping[str, Moment], source: Attention, width: int) -> dict[str, Collector]:
    """A collector for each of the moments."""
    return {name: load_object(moment.builds)(moment, source, width) for name, moment in moments.items()}


def results(collectors: Mapping[str, Collector], team: Team) -> dict[str, Mapping[str, Tensor]]:
    """What collectors give of the windows of all processes."""
    for name, collector in collectors.items() if team.size > 1 else ():
        if not isinstance(collector, MeanCollector):
            raise PluginError(
                f"the moment {name} ({type(collector).__name__}) cannot be collected by several processes",
                hint="convert in one process; its collector would have to be a MeanCollector",
            )
        collector.pool(team)
    return {name: collector.result() for name, collector in collectors.items()}


def fill(name: str, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy every weight of a start; :class:`NumericalStop` where one is not finite."""
    own = dict(module.state_dict(keep_vars=True))
    assert own.keys() == weights.keys(), f"{name}: a transplant must give exactly {sorted(own)}, not {sorted(weights)}"
    for key, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise NumericalStop(
                f"the start of {name}.{key} is not finite",
                hint="use more calibration tokens: the moments may be singular",
            )
        own[key].copy_(value)
