"""The teacher in a plan: its graph, from its checkpoint's headers where they are on this machine."""

from __future__ import annotations

from pathlib import Path

import attrs

from caramba_core.component import Layer, evolve
from caramba_core.errors import PluginError
from caramba_core.graph import Graph
from caramba_core.loading import cached_source, find_loader
from caramba_core.lowered import lower_checkpoint
from caramba_core.modes import Teacher

__all__ = ["TeacherPlan", "plan_teacher"]


@attrs.frozen(kw_only=True)
class TeacherPlan:
    """What is known of a teacher; ``graph`` is ``None`` where its checkpoint is not on this machine, ``reason`` why."""

    source: str
    dtype: str
    graph: Graph | None = None
    reason: str | None = None

    def converted(self, student: Graph) -> frozenset[str]:
        """Names of the student's attentions that differ from the teacher's; empty where the teacher is not known."""
        if self.graph is None:
            return frozenset()
        theirs = self.graph.attentions()
        return frozenset(
            name
            for name, node in student.attentions().items()
            if name not in theirs or not _same(node.config, theirs[name].config)
        )


def plan_teacher(teacher: Teacher, folder: Path) -> TeacherPlan:
    """The teacher of a group, without the network; relative sources are relative to ``folder``.

    Raises :class:`~caramba_core.errors.InputError` for a checkpoint that is there and cannot be read.
    """
    graph = reason = None
    try:
        path = cached_source(teacher.source, folder)
    except PluginError as error:  # a plan does without what a run will need
        path, reason = None, error.message
    if path is not None and path.exists():
        graph = lower_checkpoint(find_loader(path))
    else:
        reason = reason or ("it has not been fetched yet" if path is None else f"{path} does not exist")
    return TeacherPlan(source=teacher.source, dtype=teacher.dtype, graph=graph, reason=reason)


def _same(a: Layer, b: Layer) -> bool:
    """Whether two attentions differ in their name at most."""
    return type(a) is type(b) and evolve(a, name=None) == evolve(b, name=None)
