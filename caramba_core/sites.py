"""Where a student differs from its teacher, and which nodes patterns choose; light."""

from __future__ import annotations

from typing import Any, cast

import attrs

from caramba_core.components import Attention
from caramba_core.errors import InputError
from caramba_core.graph import Graph, Node

__all__ = ["Site", "find_sites", "own_attentions", "same"]


@attrs.frozen(kw_only=True)
class Site:
    """A pair of nodes of the same name whose components differ: what a conversion converts."""

    name: str
    teacher: Node
    student: Node


def find_sites(teacher: Graph, student: Graph) -> tuple[Site, ...]:
    """The attentions that differ, in the order of execution; everything else must be equal.

    Raises :class:`InputError` listing every other difference: such models cannot be converted into one another.
    """
    old, new = teacher.nodes(), student.nodes()
    differences = [f"{name} is in the manifest, not in the teacher" for name in new if name not in old]
    differences += [f"{name} is in the teacher, not in the manifest" for name in old if name not in new]
    if teacher.tied_embeddings != student.tied_embeddings:
        differences.append(
            f"tied_embeddings: the teacher has {teacher.tied_embeddings}, the manifest {student.tied_embeddings}"
        )
    sites = []
    for name, node in new.items():
        if name not in old or same(old[name], node):
            continue
        if isinstance(node.config, Attention) and isinstance(old[name].config, Attention):
            sites.append(Site(name=name, teacher=old[name], student=node))
        else:
            differences += [f"{name}.{text}" for text in _differences(old[name], node)]
    if differences:
        shown = differences[:12] + ([f"... and {len(differences) - 12} more"] if len(differences) > 12 else [])
        raise InputError(
            "the manifest's model differs from the teacher in more than its attention:\n    " + "\n    ".join(shown),
            expected="the same model, but for the attentions that are to be converted",
            hint="compare with the teacher's own sizes: the checkpoint's config.json or GGUF header",
        )
    return tuple(sites)


def own_attentions(student: Graph, teacher: Graph | None) -> frozenset[str]:
    """Names of the student's attentions that the teacher has not, or has otherwise; none where there is no teacher."""
    theirs = {} if teacher is None else teacher.attentions()
    own = (name for name, node in student.attentions().items() if name not in theirs or not same(node, theirs[name]))
    return frozenset() if teacher is None else frozenset(own)


def same(a: Node, b: Node) -> bool:
    """Whether two nodes differ in their configs' names at most, and in how their caches are stored."""
    return not _differences(a, b)


def _differences(teacher: Node, student: Node) -> list[str]:
    if type(teacher.config) is not type(student.config):
        return [f"type: the teacher has {type(teacher.config).__name__}, the manifest {type(student.config).__name__}"]
    if teacher.scopes or student.scopes:  # topologies: their layers are compared node by node
        return (
            []
            if len(teacher.scopes) == len(student.scopes)
            else [f"bodies: the teacher has {len(teacher.scopes)}, the manifest {len(student.scopes)}"]
        )
    found = []
    for name in attrs.fields_dict(cast(Any, type(teacher.config))):
        theirs, ours = getattr(teacher.config, name), getattr(student.config, name)
        if theirs != ours and name not in ("name", "cache"):
            found.append(f"{name}: the teacher has {theirs}, the manifest {ours}")
    return found
