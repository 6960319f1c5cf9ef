"""``model: {from: teacher, replace: {PATTERN: LAYER, ...}}`` spelled out.

The teacher's model is taken as its checkpoint tells it; where a pattern matches nodes, their layer is replaced in the
repetitions that match.  A replacement of the same type (or without one) changes single fields; one of another type
takes over the fields that the layer in its place hands on, as far as it has such fields and does not set them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, Final, Protocol, runtime_checkable

import attrs
from caramba_document.problem import Path, dotted
from caramba_document.reading import Reading
from caramba_document.source import SourceText, TextSpan
from caramba_document.suggestions import nearest, suggestion
from caramba_document.tree import Gap, List, Map, MapItem, Node, Scalar, find, merge, plain, replaced_at
from caramba_plugins_standard.loading import Checkpoint, cached_source, fetch_source, find_loader, lower_checkpoint

from caramba_core.components import Layer
from caramba_core.errors import CarambaError, InputError, PluginError, ResourceExhausted
from caramba_core.graph import Graph, local_name, matches
from caramba_core.graph import Node as GraphNode
from caramba_core.kinds import LAYER_KINDS
from caramba_core.plugins.registry import Registry

__all__ = ["Repeated", "TeacherModel"]

_KEYS: Final = ("from", "replace")


@runtime_checkable
class Repeated(Protocol):
    """A topology for which a manifest writes layers once that several bodies have, each with weights of its own."""

    def with_repetitions(
        self, written: Map, nodes: Sequence[Mapping[str, Path]], change: Callable[[int, Map], Map]
    ) -> Map:
        """How a manifest writes this topology with layers of single bodies changed.

        ``written`` is the mapping that this config was made of.  ``change(index, written)`` returns it with the changes
        of one body made in the layers that this body has so far.  ``nodes[index]`` has the path in ``written``, by
        name, of every node that changes in some body.
        """
        ...


class TeacherModel:
    """The origin ``teacher``: opens the checkpoint of each teacher once, also where that fails."""

    def __init__(self, registry: Registry, folder: FilePath, *, fetch: bool) -> None:
        self._registry = registry
        self._folder = folder
        self._fetch = fetch
        self._opened: dict[str, tuple[Map, Graph] | CarambaError] = {}

    def model(self, asked: Map, group: Map | None, path: Path, reading: Reading) -> Node:
        """The teacher's model with the layers of ``replace:`` and the other keys of ``asked`` in it."""
        span = asked.entries["from"].value.span
        layers = asked.get("topology")
        if layers is not None and not isinstance(layers, Gap):
            return reading.gap(
                span,
                "the model has layers of its own beside the teacher's",
                path=(*path, "from"),
                hint="leave one of them out: from, or topology, which a manifest that is extended may have given",
                notes=(f"topology is written at {layers.span.place}",),
            )
        teacher = None if group is None else group.get("teacher")
        if teacher is None:
            hint = "add teacher: {source: ...} to the group"
            return reading.gap(span, "there is no teacher to take the model from", path=(*path, "from"), hint=hint)
        source = teacher.get("source")
        if source is None or source.text is None:
            return Gap(span)  # structuring says what is wrong with the teacher
        try:
            tree, graph = self._open(source.text)
        except ResourceExhausted:  # a full disk is no fault of the manifest
            raise
        except CarambaError as error:
            notes = (f"its model is wanted at {span.place}",)
            reading.gap(source.span, error.message, expected=error.expected, hint=error.hint, notes=notes)
            return Gap(span)
        model = _Replacing(tree, graph, (*path, "replace"), reading, self._registry).tree_with(asked.get("replace"))
        own = asked.without(*_KEYS)
        return merge(model, own) if own.entries else model

    def _open(self, source: str) -> tuple[Map, Graph]:
        """A teacher's model, as a tree and as a graph."""
        if source not in self._opened:
            try:
                checkpoint = find_loader(self._path(source))
                tree = _located(checkpoint.model(), checkpoint, ())
                assert isinstance(tree, Map)
                self._opened[source] = tree, lower_checkpoint(checkpoint)
            except CarambaError as error:
                self._opened[source] = error
        opened = self._opened[source]
        if isinstance(opened, CarambaError):
            raise opened
        return opened

    def _path(self, source: str) -> FilePath:
        path = fetch_source(source, self._folder).path if self._fetch else cached_source(source, self._folder)
        if path is None:
            raise InputError(
                f"the model is taken from the teacher {source}, which is not on this machine",
                hint="caramba run fetches it",
            )
        return path


def _located(value: Any, checkpoint: Checkpoint, path: Path) -> Node:
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


# ------------------------------------------------------------------------------------------------ replace:


@attrs.frozen
class _Site:
    """A node of the teacher, and the topologies around it that repeat, each with the index of its repetition."""

    node: GraphNode
    repeated: tuple[tuple[GraphNode, int], ...]

    @property
    def path(self) -> Path:
        """Where its layer stands in the model."""
        return self.node.path[1:]


@attrs.frozen
class _Replacing:
    tree: Map
    graph: Graph
    path: Path
    reading: Reading
    registry: Registry

    def tree_with(self, replace: Node | None) -> Node:
        """The teacher's tree with the layers of ``replace:`` in it."""
        if replace is None or isinstance(replace, Gap):
            return self.tree
        if not isinstance(replace, Map):
            return self.reading.mismatch(replace, "a mapping of patterns", self.path)
        sites = [
            site
            for root in (self.graph.embedder, self.graph.topology, self.graph.head)
            for site in _sites(root, ())
            if not site.node.inline
        ]
        chosen: dict[str, tuple[str, _Site, Node]] = {}
        for pattern, replacement in replace.entries.items():
            matched = [site for site in sites if matches(site.node.name, pattern)]
            if not matched:
                self._unmatched(pattern, replacement.key, [local_name(site.node.name) for site in sites])
            for site in matched:
                before, _, _ = chosen.setdefault(site.node.name, (pattern, site, replacement.value))
                if before != pattern:
                    name = local_name(site.node.name)
                    self._report(replacement.key, f"{name} is matched by {before!r} already", pattern=pattern)
                    break
        return self._changed([(site, value) for _, site, value in chosen.values()])

    def _changed(self, changes: list[tuple[_Site, Node]]) -> Node:
        tree: Node = self.tree
        repeated: dict[Path, tuple[GraphNode, dict[int, list[tuple[GraphNode, Node]]]]] = {}
        for site, value in changes:
            if len(site.repeated) > 1:
                self._report(value.span, f"{local_name(site.node.name)} is repeated inside what is repeated")
            elif site.repeated:
                ((topology, index),) = site.repeated
                _, bodies = repeated.setdefault(topology.path[1:], (topology, {}))
                bodies.setdefault(index, []).append((site.node, value))
            else:
                tree = self._replaced(tree, site.path, site.node, value)
        for outer, (topology, bodies) in repeated.items():
            tree = replaced_at(tree, outer, self._with_repetitions(topology, bodies))
        return tree

    def _with_repetitions(self, topology: GraphNode, bodies: dict[int, list[tuple[GraphNode, Node]]]) -> Map:
        """A topology with layers of single bodies replaced."""
        start = len(topology.path)
        names = {
            node.name.removeprefix(f"{topology.scopes[index].name}.")
            for index, changes in bodies.items()
            for node, _ in changes
        }
        nodes = [
            {
                name: node.path[start:]
                for root in scope.nodes
                for node in root.walk()
                if not node.inline and (name := node.name.removeprefix(f"{scope.name}.")) in names
            }
            for scope in topology.scopes
        ]

        def change(index: int, written: Map) -> Map:
            for node, value in bodies.get(index, ()):
                written = self._replaced(written, node.path[start:], node, value)
            return written

        written = find(self.tree, topology.path[1:])
        assert isinstance(written, Map)
        assert isinstance(topology.config, Repeated)
        return topology.config.with_repetitions(written, nodes, change)

    def _replaced(self, tree: Node, path: Path, node: GraphNode, value: Node) -> Any:
        """A tree with the layer of ``node``, at ``path``, replaced."""
        return replaced_at(tree, path, self._replacement(value, find(tree, path), node.config))

    def _replacement(self, value: Node, here: Node | None, config: Layer) -> Node:
        """The layer that takes the place of ``here``, of which ``config`` was made."""
        if isinstance(value, Scalar) and isinstance(value.value, str):
            value = Map({"type": MapItem(value.span, value)}, value.span)
        if not isinstance(value, Map) or not isinstance(here, Map):
            return value
        own_type = value.entries.get("type")
        if own_type is None or plain(own_type.value) == plain(here.entries["type"].value):
            return merge(here, value)
        fields = self._fields(plain(own_type.value))
        inherited = {key: here.entries[key] for key in config.inherited if key in here.entries and key in fields}
        return value.with_entries({"type": own_type, **inherited, **value.entries})

    def _fields(self, name: object) -> frozenset[str]:
        """The fields of a layer; none where there is no such layer, which structuring reports."""
        try:
            config = self.registry.load(self.registry.find(LAYER_KINDS, str(name)))
        except PluginError:
            return frozenset()
        return frozenset(field.name for field in attrs.fields(config)) if attrs.has(config) else frozenset()

    def _unmatched(self, pattern: str, key: TextSpan, nodes: list[str]) -> None:
        names = list(dict.fromkeys(nodes))
        general = list(
            dict.fromkeys(".".join("*" if part.isdecimal() else part for part in name.split(".")) for name in names)
        )
        last = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))
        near = nearest(pattern, [*general, *last, *names])
        self._report(
            key,
            f"no node of the teacher matches {pattern!r}{suggestion(near)}",
            expected=None if near else f"a pattern of {', '.join(general[:12])}",
            pattern=pattern,
        )

    def _report(self, span: TextSpan, message: str, *, expected: str | None = None, pattern: str | None = None) -> None:
        path = self.path if pattern is None else (*self.path, pattern)
        self.reading.gap(span, message, path=path, expected=expected)


def _sites(node: GraphNode, repeated: tuple[tuple[GraphNode, int], ...]) -> Iterator[_Site]:
    """A node and everything below it, each with the repetitions that it stands in."""
    yield _Site(node, repeated)
    repeats = isinstance(node.config, Repeated)
    for index, scope in enumerate(node.scopes):
        for child in scope.nodes:
            yield from _sites(child, (*repeated, (node, index)) if repeats else repeated)
