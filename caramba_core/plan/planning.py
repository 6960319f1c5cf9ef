"""The plan of a group: its model, its teacher, its runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from caramba_core.document.problem import Fault
from caramba_core.errors import InputError, ManifestError
from caramba_core.formatting import format_bytes, format_count
from caramba_core.graph import Graph, trained_nodes
from caramba_core.lowered import group_path, located, lower_all
from caramba_core.manifest.schema import Group
from caramba_core.plan.nodes import ModelPlan, plan_model
from caramba_core.plan.runs import RunPlan, Stage, plan_runs
from caramba_core.plan.teacher import TeacherPlan, plan_teacher
from caramba_core.plugins.registry import registry

if TYPE_CHECKING:
    from caramba_core.manifest.load import Loaded

__all__ = ["Plan", "plan_manifest"]

_CONTEXT = 1024
"""Tokens that a model is planned for where no run says how many."""


@attrs.frozen(kw_only=True)
class Plan:
    """What a group's model holds and takes, and what each of its runs needs.

    ``group`` is ``None`` for a manifest without groups.  ``teacher_model`` is ``None`` without a teacher, and where its
    checkpoint is not on this machine (``teacher.reason`` says why).
    """

    name: str
    group: str | None = None
    model: ModelPlan
    teacher: TeacherPlan | None = None
    teacher_model: ModelPlan | None = None
    runs: tuple[RunPlan, ...] = ()

    @property
    def title(self) -> str:
        """``name``, or ``name/group``."""
        return self.name if self.group is None else f"{self.name}/{self.group}"

    def facts(self) -> tuple[str, ...]:
        """How the model compares with its teacher, in words."""
        if self.teacher is None:
            return ()
        if self.teacher_model is None:
            return (f"teacher {self.teacher.source} is not on this machine",)
        ours, theirs = self.model.total.context_bytes, self.teacher_model.total.context_bytes
        if not ours or not theirs:
            return ()
        if ours == theirs:
            return ("a cache as large as the teacher's",)
        compared = f"{theirs / ours:.2f} times smaller" if ours < theirs else f"{ours / theirs:.2f} times larger"
        return (f"a cache {compared} than the teacher's {self.teacher_model.total.cache_bytes:,} bytes per token",)

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
    _check_patterns(loaded, graphs)
    if not graphs:
        registry().hooks.graph_lowered(graph=own)
        return (Plan(name=loaded.manifest.name, model=plan_model(own, context=context or _CONTEXT)),)
    chosen = [each for each in loaded.manifest.groups if group is None or each.name == group]
    for each in chosen:
        registry().hooks.graph_lowered(graph=graphs[each.name])
    return tuple(_plan(loaded, each, graphs[each.name], context or _longest(each)) for each in chosen)


def _plan(loaded: Loaded, group: Group, graph: Graph, context: int) -> Plan:
    teacher = None if group.teacher is None else plan_teacher(group.teacher, loaded.folder)
    dtype = "float32" if teacher is None else teacher.dtype
    model = plan_model(graph, context=context, dtype=dtype)
    teacher_model = None
    if teacher is not None and teacher.graph is not None:
        teacher_model = plan_model(teacher.graph, context=context, dtype=dtype)
    return Plan(
        name=loaded.manifest.name,
        group=group.name,
        model=model,
        teacher=teacher,
        teacher_model=teacher_model,
        runs=plan_runs(group, Stage(model=model, teacher=teacher, teacher_model=teacher_model)),
    )


def _longest(group: Group) -> int:
    """The longest sequence that a run of the group trains or is measured on."""
    lengths = [run.training.context for run in group.runs if run.training is not None]
    lengths += [settings.context for run in group.runs if (settings := run.eval or group.eval) is not None]
    return max(lengths, default=_CONTEXT)


def _check_patterns(loaded: Loaded, graphs: Mapping[str, Graph]) -> None:
    """Every pattern under ``trains`` must match a node."""
    faults = []
    for group in loaded.manifest.groups:
        for index, run in enumerate(group.runs):
            for place, pattern in enumerate(run.trains):
                try:
                    trained_nodes(graphs[group.name], (pattern,))
                except InputError as error:
                    path = (*group_path(loaded, group), "runs", index, *run.trains_key, place)
                    faults.append(Fault(path=path, message=error.message, expected=error.expected))
    if faults:
        raise ManifestError(located(loaded, faults))
