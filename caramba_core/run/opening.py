"""Opening what a group needs, before anything is computed: graph, teacher, tokens."""

from __future__ import annotations

from caramba_core.loading import fetch_source, find_loader
from caramba_core.lowered import lower_checkpoint, lower_group
from caramba_core.manifest.load import Loaded
from caramba_core.manifest.schema import Group
from caramba_core.run.context import GroupContext, TeacherSource

__all__ = ["open_group"]


def open_group(loaded: Loaded, group: Group) -> GroupContext:
    """The group's shared context: its graph is lowered, the teacher's headers are read."""
    graph, teacher = lower_group(loaded, group), None
    if group.teacher is not None:
        fetched = fetch_source(group.teacher.source, loaded.folder)
        checkpoint = find_loader(fetched.path, sha256=group.teacher.sha256)
        teacher = TeacherSource(checkpoint, lower_checkpoint(checkpoint), fetched.pinned)
    return GroupContext(loaded=loaded, group=group, graph=graph, teacher=teacher)
