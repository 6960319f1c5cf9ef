"""The located tree: a manifest's data in which every value knows where its user wrote it.

Reading, including, extending, overriding and filling in variables are functions from trees to trees; nodes never
change, so a value that stands in two places (anchors, groups that share a model) is one node.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
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
    "mapped",
    "merge",
    "noted",
    "plain",
    "replaced_at",
    "text_of",
]

MAX_DEPTH: Final = 64
"""How deep lists and mappings may nest."""


@attrs.frozen(eq=False)
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


@attrs.frozen(eq=False)
class Gap:
    """Stands where a value could not be made and a problem has already been reported; what reads it keeps quiet."""

    span: TextSpan
    notes: tuple[str, ...] = ()

    size = 1
    depth = 0
    dynamic = False


def _measure(node: List | Map) -> None:
    """Set how many values a collection holds, how deep they nest, and whether any may hold variables."""
    children = node.children
    object.__setattr__(node, "size", 1 + sum(child.size for child in children))
    object.__setattr__(node, "depth", 1 + max((child.depth for child in children), default=0))
    object.__setattr__(node, "dynamic", any(child.dynamic for child in children))


@attrs.frozen(eq=False)
class List:
    """A list.  ``head`` is what to point at where the list as a whole lacks something."""

    items: tuple[Node, ...]
    span: TextSpan
    head: TextSpan = attrs.field(default=attrs.Factory(lambda self: self.span, takes_self=True), kw_only=True)
    notes: tuple[str, ...] = attrs.field(default=(), kw_only=True)
    size: int = attrs.field(init=False)
    depth: int = attrs.field(init=False)
    dynamic: bool = attrs.field(init=False)

    __attrs_post_init__ = _measure

    @property
    def children(self) -> Collection[Node]:
        """The items."""
        return self.items


@attrs.frozen(eq=False)
class MapItem:
    """One key of a mapping with its value."""

    key: TextSpan
    value: Node


@attrs.frozen(eq=False)
class Map:
    """A mapping, in the order of writing; ``head`` as for lists."""

    entries: dict[str, MapItem]
    span: TextSpan
    head: TextSpan = attrs.field(default=attrs.Factory(lambda self: self.span, takes_self=True), kw_only=True)
    notes: tuple[str, ...] = attrs.field(default=(), kw_only=True)
    size: int = attrs.field(init=False)
    depth: int = attrs.field(init=False)
    dynamic: bool = attrs.field(init=False)

    __attrs_post_init__ = _measure

    @property
    def children(self) -> Collection[Node]:
        """The values."""
        return [item.value for item in self.entries.values()]

    def get(self, key: str) -> Node | None:
        """The value of a key, if it is there."""
        item = self.entries.get(key)
        return None if item is None else item.value

    def with_entries(self, entries: Mapping[str, MapItem]) -> Map:
        """This mapping with other entries."""
        return attrs.evolve(self, entries=dict(entries))

    def without(self, *keys: str) -> Map:
        """This mapping without some keys."""
        return self.with_entries({key: item for key, item in self.entries.items() if key not in keys})

    def set(self, key: str, value: Node, span: TextSpan | None = None) -> Map:
        """This mapping with a value; ``span`` is the place of a key that is new (its value's if not given)."""
        item = self.entries.get(key)
        return self.with_entries({**self.entries, key: MapItem(item.key if item else span or value.span, value)})


Node: TypeAlias = "Scalar | List | Map | Gap"


def noted(node: Node, note: str) -> Node:
    """The same node with one more line on how its value came to stand where it stands."""
    return attrs.evolve(node, notes=(*node.notes, note))


def text_of(node: Node | None) -> str | None:
    """The string that a node is, if it is one."""
    return node.value if isinstance(node, Scalar) and isinstance(node.value, str) else None


# ------------------------------------------------------------------------------------------------ what is done with it


def mapped(node: Node, change: Callable[[Node], Node]) -> Node:
    """A collection with every child changed; the same node where none is."""
    if not isinstance(node, List | Map):
        return node
    new = [change(child) for child in node.children]
    if all(one is other for one, other in zip(new, node.children, strict=True)):
        return node
    if isinstance(node, List):
        return attrs.evolve(node, items=tuple(new))
    pairs = zip(node.entries.items(), new, strict=True)
    return node.with_entries({key: MapItem(item.key, value) for (key, item), value in pairs})


def merge(base: Node, over: Node) -> Node:
    """``over`` laid on ``base`` key by key; anything but two mappings, and a component of another type, is replaced."""
    if not isinstance(base, Map) or not isinstance(over, Map) or _other_type(base, over):
        return over
    entries = dict(base.entries)
    for key, item in over.entries.items():
        below = entries.get(key)
        entries[key] = item if below is None else MapItem(item.key, merge(below.value, item.value))
    return over.with_entries(entries)


def _other_type(base: Map, over: Map) -> bool:
    types = [node.value for node in (base.get("type"), over.get("type")) if isinstance(node, Scalar)]
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
    if id(node) not in memo:
        values = [plain(child, memo) for child in node.children]
        memo[id(node)] = values if isinstance(node, List) else dict(zip(node.entries, values, strict=True))
    return memo[id(node)]


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
    notes = dict.fromkeys(root.notes)
    for depth, part in enumerate(path):
        if isinstance(node, Map) and isinstance(part, str) and part in node.entries:
            key, node = node.entries[part].key, node.entries[part].value
        elif isinstance(node, List) and isinstance(part, int) and 0 <= part < len(node.items):
            key, node = None, node.items[part]
        else:
            return Found(node, key, tuple(notes), path[depth:])
        notes.update(dict.fromkeys(node.notes))
    return Found(node, key, tuple(notes), ())


def replaced_at(root: Node, path: Path, new: Node) -> Node:
    """The tree with another node at a path; the last key may be a new one."""
    if not path:
        return new
    part, rest = path[0], path[1:]
    if isinstance(root, List):
        assert isinstance(part, int)
        items = list(root.items)
        items[part] = replaced_at(items[part], rest, new)
        return attrs.evolve(root, items=tuple(items))
    assert isinstance(root, Map) and isinstance(part, str)
    below = root.get(part)
    return root.set(part, new if below is None else replaced_at(below, rest, new))
