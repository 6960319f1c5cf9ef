"""``model: {from: teacher, replace: {PATTERN: LAYER, ...}}`` spelled out.

The teacher's model is taken as its checkpoint tells it; where a pattern matches nodes, their layer is replaced in the
repetitions that match.  A replacement of the same type (or without one) changes single fields; one of another type
takes over heads, width and rotary embedding, as far as it has such fields and does not set them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

import attrs

from caramba_core.component import Layer
from caramba_core.errors import CarambaError, ResourceExhausted
from caramba_core.graph import Graph, local_name, matches
from caramba_core.graph import Node as GraphNode
from caramba_core.manifest.problem import ManifestProblem, Path, shown
from caramba_core.manifest.repetitions import Repeated
from caramba_core.manifest.source import TextSpan
from caramba_core.manifest.structure import Structurer
from caramba_core.manifest.teacher import Teachers
from caramba_core.manifest.tree import Gap, Map, MapItem, Node, Scalar, find, merge, plain, replaced_at
from caramba_core.plugins.registry import registry
from caramba_core.suggestions import nearest, suggestion

__all__ = ["inherit"]

_TAKEN_OVER: Final = ("name", "n_heads", "n_kv_heads", "head_dim", "rope", "scale")
"""What an attention of another type takes over from the one in its place."""

_KEYS: Final = ("from", "replace")


def inherit(model: Node, teacher: Node | None, teachers: Teachers, path: Path, problems: list[ManifestProblem]) -> Node:
    """The whole model; a gap where that is a problem, which is added to ``problems``.

    ``teacher`` is the group's ``teacher:``, ``path`` where the model stands.
    """
    assert isinstance(model, Map)
    asked = model.entries["from"].value
    if isinstance(asked, Gap) or isinstance(teacher, Gap):
        return Gap(asked.span)
    if not isinstance(asked, Scalar) or asked.value != "teacher":
        found = shown(plain(asked))
        problems.append(
            asked.span.problem(
                f"expected teacher, found {found}", path=(*path, "from"), found=found, expected="teacher"
            )
        )
        return Gap(asked.span)
    source = teacher.entries.get("source") if isinstance(teacher, Map) else None
    if source is None or not isinstance(source.value, Scalar) or not isinstance(source.value.value, str):
        if teacher is None:
            problem = asked.span.problem("there is no teacher to take the model from", path=(*path, "from"))
            problems.append(attrs.evolve(problem, hint="add teacher: {source: ...} to the group"))
        return Gap(asked.span)
    try:
        known = teachers.model(source.value.value)
    except ResourceExhausted:  # a full disk is no fault of the manifest
        raise
    except CarambaError as error:
        problems.append(
            source.value.span.problem(
                error.message,
                expected=error.expected,
                hint=error.hint,
                notes=(f"its model is wanted at {asked.span.place}",),
            )
        )
        return Gap(asked.span)
    replacing = _Replacing(known.tree, known.graph, (*path, "replace"), problems)
    tree = replacing.tree_with(model.entries.get("replace"))
    own = {key: entry for key, entry in model.entries.items() if key not in _KEYS}
    return merge(tree, Map(own, model.span, head=model.head)) if own else tree


@attrs.frozen
class _Site:
    """A node of the teacher: where its layer stands in the tree, and in which repetition of which topology."""

    node: GraphNode
    path: Path
    repeated: tuple[tuple[Path, int], ...]


@attrs.define
class _Replacing:
    tree: Map
    graph: Graph
    path: Path
    problems: list[ManifestProblem]

    def tree_with(self, entry: MapItem | None) -> Node:
        """The teacher's tree with the layers of ``replace:`` in it."""
        if entry is None or isinstance(entry.value, Gap):
            return self.tree
        if not isinstance(entry.value, Map):
            found = shown(plain(entry.value))
            self._report(entry.value.span, f"expected a mapping of patterns, found {found}", expected="PATTERN: LAYER")
            return Gap(entry.value.span)
        sites = [site for site in _sites(self.graph) if not site.node.inline]
        chosen: dict[str, tuple[str, _Site, Node]] = {}
        for pattern, replacement in entry.value.entries.items():
            found_sites = [site for site in sites if matches(site.node.name, pattern)]
            if not found_sites:
                self._unmatched(pattern, replacement.key, sites)
            for site in found_sites:
                before = chosen.setdefault(site.node.name, (pattern, site, replacement.value))
                if before[0] != pattern:
                    name = local_name(site.node.name)
                    self._report(replacement.key, f"{name} is matched by {before[0]!r} already", pattern=pattern)
                    break
        return self._changed([(site, value) for _, site, value in chosen.values()])

    def _changed(self, changes: list[tuple[_Site, Node]]) -> Node:
        tree: Node = self.tree
        repeated: dict[Path, Repeated] = {}
        for site, value in changes:
            if not site.repeated:
                here = find(self.tree, site.path).node
                tree = replaced_at(tree, site.path, self._replacement(value, here))
                continue
            if len(site.repeated) > 1:
                self._report(value.span, f"{local_name(site.node.name)} is repeated inside what is repeated")
                continue
            ((outer, index),) = site.repeated
            inner = site.path[len(outer) :]
            name = site.node.name.split(f".{index}.", 1)[1]
            topology = find(self.tree, outer).node
            assert isinstance(topology, Map)
            state = repeated.setdefault(outer, Repeated(topology))
            state.change(index, name, inner, partial(self._replacement, value))
        for outer, state in repeated.items():
            tree = replaced_at(tree, outer, state.spelled_out())
        return tree

    def _replacement(self, value: Node, here: Node) -> Node:
        """The layer that takes the place of ``here``."""
        if isinstance(value, Scalar) and isinstance(value.value, str):
            value = Map({"type": MapItem(value.span, value)}, value.span)
        if not isinstance(value, Map) or not isinstance(here, Map):
            return value
        own_type = value.entries.get("type")
        if own_type is None or plain(own_type.value) == plain(here.entries["type"].value):
            return merge(here, value)
        fields = Structurer(registry()).fields_of(plain(own_type.value), Layer)
        taken: dict[str, MapItem] = {
            key: here.entries[key] for key in _TAKEN_OVER if key in here.entries and key in fields
        }
        return Map({"type": own_type, **taken, **value.entries}, value.span, head=value.head, notes=value.notes)

    def _unmatched(self, pattern: str, key: TextSpan, sites: list[_Site]) -> None:
        names = list(dict.fromkeys(local_name(site.node.name) for site in sites))
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
        self.problems.append(span.problem(message, path=path, expected=expected))


def _sites(graph: Graph) -> Iterator[_Site]:
    """Every node with the path of its layer in the model and the repetitions that it stands in."""

    def walk(node: GraphNode, repeated: tuple[tuple[Path, int], ...]) -> Iterator[_Site]:
        path = node.path[1:]  # without "model"
        yield _Site(node, path, repeated)
        firsts = [scope.nodes[0].path[1:] for scope in node.scopes if scope.nodes]
        repeats = not node.inline and bool(firsts) and set(firsts) == {(*path, "layers", 0)}
        for index, scope in enumerate(node.scopes):
            for child in scope.nodes:
                yield from walk(child, (*repeated, (path, index)) if repeats else repeated)

    for part in (graph.embedder, graph.topology, graph.head):
        yield from walk(part, ())
