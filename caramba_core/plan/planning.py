"""The plan of a group: its model, its teacher, its runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
from caramba_document.problem import Fault
from caramba_terminal.numbers import format_average, format_bytes, format_count

from caramba_core.errors import InputError, ManifestError, PluginError
from caramba_core.graph import Graph
from caramba_core.lowered import located, lower_all
from caramba_core.manifest.schema import Group
from caramba_core.modes import Teacher
from caramba_core.plan.checks import pattern_faults, run_faults
from caramba_core.plan.nodes import ModelPlan, plan_model
from caramba_core.plan.runs import RunPlan, TeacherPlan, plan_runs
from caramba_core.plugins.registry import registry
from caramba_core.sites import find_sites
from caramba_core.teachers import reader

if TYPE_CHECKING:
    from caramba_core.manifest.load import Loaded

__all__ = ["Plan", "longest_context", "plan_manifest"]

_CONTEXT = 1024
"""Tokens that a model is planned for where no run says how many."""


@attrs.frozen(kw_only=True)
class Plan:
    """What a group's model holds and takes, and what each of its runs needs.

    ``group`` is ``None`` for a manifest without groups.
    """

    name: str
    group: str | None = None
    model: ModelPlan
    teacher: TeacherPlan | None = None
    runs: tuple[RunPlan, ...] = ()

    @property
    def title(self) -> str:
        """``name``, or ``name/group``."""
        return self.name if self.group is None else f"{self.name}/{self.group}"

    def facts(self) -> tuple[str, ...]:
        """How the model compares with its teacher, in words."""
        if self.teacher is None:
            return ()
        if self.teacher.model is None:
            return (f"teacher {self.teacher.source} is not on this machine",)
        ours, theirs = self.model.total.context_bytes, self.teacher.model.total.context_bytes
        if not ours or not theirs:
            return ()
        if ours == theirs:
            return ("a cache as large as the teacher's",)
        compared = f"{theirs / ours:.2f} times smaller" if ours < theirs else f"{ours / theirs:.2f} times larger"
        per_token = format_average(self.teacher.model.total.cache_bytes)
        return (f"a cache {compared} than the teacher's {per_token} bytes per token",)

    def line(self) -> str:
        """The plan in one line."""
        total = self.model.total
        words = [
            f"{format_count(total.parameters)} parameters",
            f"{format_bytes(total.context_bytes)} cached at {self.model.context:,} tokens in {self.model.dtype}",
        ]
        if self.runs:
            most = max(run.memory.total for run in self.runs)
            words.append(f"{len(self.runs)} run{'s' * (len(self.runs) > 1)} in about {format_bytes(most)}")
        return f"{self.title}: {', '.join((*words, *self.facts()))}"


def plan_manifest(loaded: Loaded, *, group: str | None = None, context: int | None = None) -> tuple[Plan, ...]:
    """The plans of all groups (of one, if named); of the manifest's own model where it has none.

    ``context`` is the sequence length that operations and cache are stated for; a group's longest run's if not given.
    Plugins see each chosen graph first.  Raises :class:`ManifestError` with the faults of all groups together, models
    that cannot be built and patterns that match nothing, and :class:`~caramba_core.errors.InputError` for a teacher
    that is there and cannot be read.
    """
    own, graphs = lower_all(loaded)
    _refuse(loaded, (f for each in loaded.manifest.groups for f in pattern_faults(loaded, each, graphs[each.name])))
    if not graphs:
        registry().hooks.graph_lowered(graph=own)
        return (Plan(name=loaded.manifest.name, model=plan_model(own, context=context or _CONTEXT)),)
    chosen = [each for each in loaded.manifest.groups if group is None or each.name == group]
    for each in chosen:
        registry().hooks.graph_lowered(graph=graphs[each.name])
    plans = tuple(_plan(loaded, each, graphs[each.name], context or longest_context(each)) for each in chosen)
    _refuse(loaded, (fault for each, plan in zip(chosen, plans, strict=True) for fault in _faults(loaded, each, plan)))
    return plans


def _faults(loaded: Loaded, group: Group, plan: Plan) -> Iterator[Fault]:
    """What can be said of a group's runs where its teacher is on this machine, or there is none."""
    teacher = None if plan.teacher is None else plan.teacher.model
    if group.teacher is not None and teacher is None:
        return
    with suppress(InputError):  # a teacher of another shape, which a run says
        sites = () if teacher is None else find_sites(teacher.graph, plan.model.graph)
        for run in group.runs:
            yield from run_faults(loaded, group, run, plan.model.graph, sites)


def _refuse(loaded: Loaded, faults: Iterator[Fault]) -> None:
    if found := list(faults):
        raise ManifestError(located(loaded, found))


def _plan(loaded: Loaded, group: Group, graph: Graph, context: int) -> Plan:
    teacher = None if group.teacher is None else plan_teacher(group.teacher, loaded.folder, context)
    model = plan_model(graph, context=context, dtype="float32" if teacher is None else teacher.dtype)
    runs = plan_runs(group, model, teacher)
    return Plan(name=loaded.manifest.name, group=group.name, model=model, teacher=teacher, runs=runs)


def plan_teacher(teacher: Teacher, folder: Path, context: int) -> TeacherPlan:
    """The teacher of a group, without the network; relative sources are relative to ``folder``.

    Raises :class:`~caramba_core.errors.InputError` for a checkpoint that is there and cannot be read.
    """
    try:
        found = reader(teacher.source).cached(teacher.source, folder)
    except PluginError as error:  # a plan does without what a run will need
        found = error.message
    if isinstance(found, str):
        return TeacherPlan(source=teacher.source, dtype=teacher.dtype, reason=found)
    model = plan_model(found.graph, context=context, dtype=teacher.dtype)
    return TeacherPlan(source=teacher.source, dtype=teacher.dtype, model=model)


def longest_context(group: Group) -> int:
    """The longest sequence that a run of the group trains or is measured on: what its plan is stated for."""
    lengths = []
    for run in group.runs:
        settings = group.evaluation(run)
        if run.eval or group.eval:
            lengths.append(settings.context)
        if (load := run.workload(settings, vocab_size=0)).sequences:
            lengths.append(load.context)
    return max(lengths, default=_CONTEXT)
