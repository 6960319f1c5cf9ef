"""The teacher's model as a tree: what ``model: {from: teacher}`` stands for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any, Final

import attrs

from caramba_core.errors import CarambaError, InputError
from caramba_core.graph import Graph
from caramba_core.loading import Checkpoint, fetch_source, find_loader
from caramba_core.manifest.model import structure_model
from caramba_core.manifest.problem import dotted
from caramba_core.manifest.source import SourceText, TextSpan
from caramba_core.manifest.tree import List, Map, MapItem, Node, Scalar
from caramba_core.plugins.registry import registry

__all__ = ["TeacherModel", "Teachers"]

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


@attrs.frozen(eq=False)
class TeacherModel:
    """The model of a checkpoint: its tree, in which every value knows its key, and its graph."""

    tree: Map
    graph: Graph


@attrs.define
class Teachers:
    """Opens the checkpoints that models are taken from, each once, also where that fails.

    ``folder`` is what relative names are relative to.  With ``fetch`` a checkpoint that is not on this machine is
    fetched; without, it is an :class:`InputError`.
    """

    folder: FilePath
    fetch: bool = False
    _opened: dict[str, TeacherModel | CarambaError] = attrs.field(factory=dict)

    def model(self, source: str) -> TeacherModel:
        """The model of a teacher; raises :class:`CarambaError` where it cannot be read."""
        if source not in self._opened:
            try:
                self._opened[source] = self._open(source)
            except CarambaError as error:
                self._opened[source] = error
        known = self._opened[source]
        if isinstance(known, CarambaError):
            raise known
        return known

    def _open(self, source: str) -> TeacherModel:
        from caramba_core.lowering import lower

        checkpoint = find_loader(self._local(source))
        data = checkpoint.model()
        tree = _located(data, checkpoint, ())
        assert isinstance(tree, Map)
        return TeacherModel(tree, lower(structure_model(data, origin=str(checkpoint.path))))

    def _local(self, source: str) -> FilePath:
        """Where the checkpoint is on this machine."""
        address = _SCHEME.fullmatch(source)
        plugins = registry()
        if address is None or self.fetch or address[1] not in {entry.name for entry in plugins.entries("source")}:
            return fetch_source(source, self.folder).path
        fetcher: Any = plugins.load(plugins.find(("source",), address[1]))
        path: FilePath | None = fetcher.cached(address[2])
        if path is None:
            raise InputError(
                f"the model is taken from the teacher {source}, which is not on this machine",
                hint="caramba run fetches it",
            )
        return path


def _located(value: Any, checkpoint: Checkpoint, path: tuple[str | int, ...]) -> Node:
    """A tree whose places are keys of the teacher's configuration."""
    key = checkpoint.key_of(path) if path else None
    name = f"{checkpoint.path}: teacher config, key {key or dotted(path)}" if path else str(checkpoint.path)
    span = TextSpan(SourceText(name=name, text="", placeless=True, key=key), 0, 0)
    if isinstance(value, Mapping):
        return Map(
            {name: MapItem(span, _located(item, checkpoint, (*path, name))) for name, item in value.items()}, span
        )
    if isinstance(value, list | tuple):
        return List(tuple(_located(item, checkpoint, (*path, index)) for index, item in enumerate(value)), span)
    return Scalar(value, span, literal=True)
