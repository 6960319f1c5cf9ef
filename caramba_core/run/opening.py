"""Opening what a group needs, before anything is computed: graph, teacher, tokens."""

from __future__ import annotations

from caramba_core.errors import InputError
from caramba_core.graph import Graph
from caramba_core.loading import fetch_source, find_loader
from caramba_core.lowered import lower_group
from caramba_core.lowering import lower
from caramba_core.manifest import Loaded, structure_model
from caramba_core.manifest.schema import Group
from caramba_core.run.context import GroupContext, TeacherSource

__all__ = ["open_group"]


def open_group(loaded: Loaded, group: Group) -> GroupContext:
    """The group's shared context: its graph is lowered, the teacher's headers are read."""
    graph = lower_group(loaded, group)
    return GroupContext(loaded=loaded, group=group, graph=graph, teacher=_teacher(loaded, group))


def _teacher(loaded: Loaded, group: Group) -> TeacherSource | None:
    if group.teacher is None:
        return None
    fetched = fetch_source(group.teacher.source, loaded.folder)
    checkpoint = find_loader(fetched.path, sha256=group.teacher.sha256)
    graph: Graph = lower(structure_model(checkpoint.model(), origin=str(checkpoint.path)))
    if not graph.vocab_size:
        raise InputError(f"{checkpoint.path} has an empty vocabulary")
    return TeacherSource(checkpoint, graph, fetched.pinned)
