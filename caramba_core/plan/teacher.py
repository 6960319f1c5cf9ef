"""The teacher in a plan: its graph from the checkpoint's headers where they are on this machine.  Never the network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from caramba_core.component import Layer
from caramba_core.errors import InputError, PluginError
from caramba_core.graph import Graph
from caramba_core.loading import fetch_source, find_loader
from caramba_core.lowering import LoweringError, lower
from caramba_core.manifest.load import structure_model
from caramba_core.modes import Teacher
from caramba_core.plugins.registry import registry

__all__ = ["TeacherPlan", "plan_teacher"]

_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<location>.*)", re.DOTALL)


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
    """The teacher of a group; relative sources are relative to ``folder``.

    Raises :class:`InputError` for a checkpoint that is there and cannot be read.
    """
    path, reason = _local(teacher.source, folder)
    if path is None:
        return TeacherPlan(source=teacher.source, dtype=teacher.dtype, reason=reason)
    checkpoint = find_loader(path)
    return TeacherPlan(source=teacher.source, dtype=teacher.dtype, graph=_graph(checkpoint.model(), str(path)))


def _local(source: str, folder: Path) -> tuple[Path | None, str]:
    """Where a source already is, or why it is not here."""
    address = _ADDRESS.fullmatch(source)
    if address is None:
        path = fetch_source(source, folder).path
        return (path, "") if path.exists() else (None, f"{path} does not exist")
    plugins = registry()
    if address["scheme"] not in {entry.name for entry in plugins.entries("source")}:
        return None, f"no installed plugin fetches from {address['scheme']}://"
    fetcher: Any = plugins.load(plugins.find(("source",), address["scheme"]))
    look = getattr(fetcher, "cached", None)  # a source that cannot tell has to be fetched first
    try:
        found: Path | None = None if look is None else look(address["location"])
    except PluginError as error:  # its library is missing, which a run would need and a plan does not
        return None, error.message
    return found, "" if found is not None else "it has not been fetched yet"


def _graph(model: Mapping[str, Any], origin: str) -> Graph:
    try:
        return lower(structure_model(model, origin=origin))
    except LoweringError as error:
        raise InputError(f"{origin} describes a model that cannot be:\n{error}") from None


def _same(a: Layer, b: Layer) -> bool:
    """Whether two attentions differ in their name at most."""
    return type(a) is type(b) and attrs.evolve(a, name=None) == attrs.evolve(b, name=None)  # type: ignore[misc]
