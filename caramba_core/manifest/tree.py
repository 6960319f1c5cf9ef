"""The located tree: a manifest's data in which every value knows where its user wrote it.

Reading, including, extending, overriding and filling in variables are functions from trees to trees; nodes never
change, so a value that stands in two places (anchors, groups that share a model) is one node.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

import attrs

from caramba_core.manifest.problem import Path
from caramba_core.manifest.source import TextSpan

__all__ = [
    "GAP",
    "MAX_DEPTH",
    "Found",
    "Gap",
    "List",
    "Map",
    "MapItem",
    "Node",
    "Scalar",
    "find",
    "list_of",
    "map_of",
    "merge",
    "noted",
    "plain",
    "replaced_at",
]

MAX_DEPTH: Final = 64
"""How deep lists and mappings may nest."""


@attrs.frozen(slots=True, eq=False)
class Scalar:
    """A string, number, truth value or null; ``dynamic`` says that it may hold variables."""

    value: bool | int | float | str | None
    span: TextSpan
    notes: tuple[str, ...] = ()
    dynamic: bool = attrs.field()

    size = 1
    depth = 0

    @dynamic.default
    def _is_dynamic(self) -> bool:
        return isinstance(self.value, str) and "$" in self.value


@attrs.frozen(slots=True, eq=False)
class List:
    """A list.  ``head`` is what to point at where the list as a whole lacks something."""

    items: tuple[Node, ...]
    span: TextSpan
    head: TextSpan
    notes: tuple[str, ...]
    size: int
    depth: int
    dynamic: bool


@attrs.frozen(slots=True, eq=False)
class MapItem:
    """One key of a mapping with its value."""

    key: TextSpan
    value: Node


@attrs.frozen(slots=True, eq=False)
class Map:
    """A mapping, in the order of writing."""

    entries: dict[str, MapItem]
    span: TextSpan
    head: TextSpan
    notes: tuple[str, ...]
    size: int
    depth: int
    dynamic: bool


@attrs.frozen(slots=True, eq=False)
class Gap:
    """Stands where a value could not be made and a problem has already been reported; what reads it keeps quiet."""

    span: TextSpan
    notes: tuple[str, ...] = ()

    size = 1
    depth = 0
    dynamic = False


Node: TypeAlias = "Scalar | List | Map | Gap"


def list_of(
    items: Iterable[Node], span: TextSpan, *, head: TextSpan | None = None, notes: tuple[str, ...] = ()
) -> List:
    """A list node."""
    held = tuple(items)
    return List(held, span, head or span, notes, *_measures(held))


def map_of(
    entries: dict[str, MapItem], span: TextSpan, *, head: TextSpan | None = None, notes: tuple[str, ...] = ()
) -> Map:
    """A mapping node."""
    return Map(entries, span, head or span, notes, *_measures([entry.value for entry in entries.values()]))


def _measures(children: Sequence[Node]) -> tuple[int, int, bool]:
    """Size, depth and whether anything in it waits for variables."""
    return (
        1 + sum(child.size for child in children),
        1 + max((child.depth for child in children), default=0),
        any(child.dynamic for child in children),
    )


def noted(node: Node, note: str) -> Node:
    """The same node with one more line on how its value came to stand where it stands."""
    return attrs.evolve(node, notes=(*node.notes, note))


# ------------------------------------------------------------------------------------------------ what is done with it


def merge(base: Node, over: Node) -> Node:
    """``over`` laid on ``base`` key by key; anything but two mappings, and a component of another type, is replaced."""
    if not isinstance(base, Map) or not isinstance(over, Map) or _other_type(base, over):
        return over
    entries = dict(base.entries)
    for key, entry in over.entries.items():
        below = entries.get(key)
        entries[key] = entry if below is None else MapItem(entry.key, merge(below.value, entry.value))
    return map_of(entries, over.span, head=over.head, notes=over.notes)


def _other_type(base: Map, over: Map) -> bool:
    types = [
        entry.value.value for m in (base, over) if (entry := m.entries.get("type")) and isinstance(entry.value, Scalar)
    ]
    return len(types) == 2 and types[0] != types[1]


class _GapData:
    """The plain form of a :class:`Gap`."""

    def __repr__(self) -> str:
        return "<unreadable>"


GAP: Final = _GapData()


def plain(node: Node, memo: dict[int, Any] | None = None) -> Any:
    """The data of a tree without places; one node becomes one object, wherever it stands."""
    memo = {} if memo is None else memo
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Gap):
        return GAP
    known = memo.get(id(node))
    if known is None:
        known = (
            [plain(item, memo) for item in node.items]
            if isinstance(node, List)
            else {key: plain(entry.value, memo) for key, entry in node.entries.items()}
        )
        memo[id(node)] = known
    return known


@attrs.frozen
class Found:
    """Where a path leads: the node, its key if it has one, the notes on the way; ``missing`` is what was not there."""

    node: Node
    key: TextSpan | None
    notes: tuple[str, ...]
    missing: Path


def find(root: Node, path: Path) -> Found:
    """The node at a path, or the nearest one above where the path leads nowhere."""
    node, key = root, None
    notes = list(node.notes)
    for depth, part in enumerate(path):
        if isinstance(node, Map) and isinstance(part, str) and part in node.entries:
            entry = node.entries[part]
            node, key = entry.value, entry.key
        elif isinstance(node, List) and isinstance(part, int) and 0 <= part < len(node.items):
            node, key = node.items[part], None
        else:
            return Found(node, key, tuple(dict.fromkeys(notes)), path[depth:])
        notes.extend(node.notes)
    return Found(node, key, tuple(dict.fromkeys(notes)), ())


def replaced_at(root: Node, path: Path, new: Node) -> Node:
    """The tree with another node at a path; the last key may be a new one."""
    if not path:
        return new
    part, rest = path[0], path[1:]
    if isinstance(root, List):
        assert isinstance(part, int)
        items = list(root.items)
        items[part] = replaced_at(items[part], rest, new)
        return list_of(items, root.span, head=root.head, notes=root.notes)
    assert isinstance(root, Map) and isinstance(part, str)
    below = root.entries.get(part)
    inner = new if below is None else replaced_at(below.value, rest, new)
    entry = MapItem(new.span if below is None else below.key, inner)
    return map_of({**root.entries, part: entry}, root.span, head=root.head, notes=root.notes)
