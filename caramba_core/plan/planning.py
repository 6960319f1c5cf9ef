"""The plan of a group: its model, its teacher, its runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from caramba_core.errors import ManifestError
from caramba_core.formatting import format_bytes, format_count
from caramba_core.graph import Graph, local_name, matches
from caramba_core.lowered import group_path, located, lower_all, lower_group
from caramba_core.lowering import Fault
from caramba_core.manifest.names import listing, nearest, suggestion
from caramba_core.manifest.schema import Group
from caramba_core.plan.data import plan_data
from caramba_core.plan.nodes import ModelPlan, plan_model
from caramba_core.plan.runs import RunPlan, Stage, plan_runs
from caramba_core.plan.teacher import TeacherPlan, plan_teacher
from caramba_core.plugins.manager import hooks

if TYPE_CHECKING:
    from rich.console import Console

    from caramba_core.manifest.load import Loaded

__all__ = ["Plan", "plan_group", "plan_manifest"]

_CONTEXT = 1024
"""Tokens that a model is planned for where no run says how many."""


@attrs.frozen(kw_only=True)
class Plan:
    """What a group's model holds and takes, and what each of its runs needs.

    ``group`` is ``None`` for a manifest without groups.  ``teacher_model`` is ``None`` without a teacher, and where its
    checkpoint is not on this machine (``teacher.reason`` says why).
    """

    name: str
    group: str | None
    model: ModelPlan
    teacher: TeacherPlan | None
    teacher_model: ModelPlan | None
    runs: tuple[RunPlan, ...]

    @property
    def title(self) -> str:
        """``name``, or ``name/group``."""
        return self.name if self.group is None else f"{self.name}/{self.group}"

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data: what ``plan.json`` holds (:mod:`caramba_core.plan.data`)."""
        return plan_data(self)

    def facts(self) -> tuple[str, ...]:
        """What the plan says of the teacher, in words."""
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
        if self.teacher is not None and self.teacher_model is None:
            words.append(f"teacher {self.teacher.source} not on this machine")
        return f"{self.title}: {', '.join(words)}"

    def render(self, console: Console, *, full: bool = False) -> None:
        """Print the plan; ``full`` spells repeated blocks out."""
        from caramba_core.plan.render import render

        render(self, console, full=full)


def plan_group(loaded: Loaded, group: Group, *, context: int | None = None) -> Plan:
    """The plan of one group.

    ``context`` is the sequence length that operations and cache are stated for; the longest of the group's runs if not
    given.  Raises :class:`ManifestError` for a model that cannot be, and for patterns that choose nothing;
    :class:`~caramba_core.errors.InputError` for a teacher that is there and cannot be read.
    """
    graph = lower_group(loaded, group)
    _check_patterns(loaded, ((group, graph),))
    return _plan(loaded, group, graph, context)


def plan_manifest(loaded: Loaded, *, group: str | None = None, context: int | None = None) -> tuple[Plan, ...]:
    """The plans of all groups (of one, if named); of the manifest's own model where it has none.

    Raises as :func:`plan_group` does, for the problems of all groups together.  Plugins see each chosen graph first.
    """
    own, graphs = lower_all(loaded)
    groups = loaded.manifest.groups
    _check_patterns(loaded, tuple((g, graphs[g.name]) for g in groups))
    if not groups:
        hooks().graph_lowered(graph=own)
        model = plan_model(own, context=context or _CONTEXT)
        name = loaded.manifest.name
        return (Plan(name=name, group=None, model=model, teacher=None, teacher_model=None, runs=()),)
    chosen = [g for g in groups if group is None or g.name == group]
    for g in chosen:
        hooks().graph_lowered(graph=graphs[g.name])
    return tuple(_plan(loaded, g, graphs[g.name], context) for g in chosen)


def _plan(loaded: Loaded, group: Group, graph: Graph, context: int | None) -> Plan:
    length = context or _longest(group)
    teacher = None if group.teacher is None else plan_teacher(group.teacher, loaded.folder)
    dtype = "float32" if teacher is None else teacher.dtype
    model = plan_model(graph, context=length, dtype=dtype)
    teacher_model = None
    if teacher is not None and teacher.graph is not None:
        teacher_model = plan_model(teacher.graph, context=length, dtype=dtype)
    stage = Stage(model=model, teacher=teacher, teacher_model=teacher_model)
    return Plan(
        name=loaded.manifest.name,
        group=group.name,
        model=model,
        teacher=teacher,
        teacher_model=teacher_model,
        runs=plan_runs(group, stage),
    )


def _longest(group: Group) -> int:
    """The longest sequence that a run of the group trains or is measured on."""
    lengths = [run.train.context for run in group.runs if run.train is not None]
    lengths += [settings.context for run in group.runs if (settings := run.eval or group.eval) is not None]
    return max(lengths, default=_CONTEXT)


def _check_patterns(loaded: Loaded, groups: tuple[tuple[Group, Graph], ...]) -> None:
    """Every pattern under ``trains`` must choose a node."""
    faults = []
    for group, graph in groups:
        names = list(graph.nodes())
        for index, run in enumerate(group.runs):
            for place, pattern in enumerate(() if run.train is None else run.train.trains):
                if not any(matches(name, pattern) for name in names):
                    path = (*group_path(loaded, group), "runs", index, "train", "trains", place)
                    faults.append(_unmatched(path, pattern, names))
    if faults:
        raise ManifestError(located(loaded, faults))


def _unmatched(path: tuple[str | int, ...], pattern: str, names: list[str]) -> Fault:
    roles = _roles(names)
    near = nearest(local_name(pattern), [*roles, *map(local_name, names)])
    return Fault(
        path=path,
        message=f"{pattern!r} matches no node of the model{suggestion(near)}",
        expected=None if near else f"a pattern of node names such as {listing(roles)}, blocks.[0-7].attention",
    )


def _roles(names: list[str]) -> list[str]:
    """The last parts of the names, without the indexes of repetitions and the numbers of second norms."""
    last = (name.rsplit(".", 1)[-1] for name in names)
    return sorted({part for part in last if not part.isdigit() and not part.rpartition("_")[2].isdigit()})
