"""The located tree: a manifest's data in which every value knows where its user wrote it.

Reading, including, extending, overriding and filling in variables are functions from trees to trees; nodes never
change, so a value that stands in two places (anchors, groups that share a model) is one node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import attrs

from caramba_document.problem import Fault, ManifestProblem, Path
from caramba_document.source import TextSpan

__all__ = ["GAP", "MAX_DEPTH", "Gap", "List", "Map", "MapItem", "Node", "Scalar"]
__all__ += ["as_read", "find", "keys_of_sources", "mapped", "merge", "noted", "plain", "problem_at", "replaced_at"]

MAX_DEPTH: Final = 64
"""How deep lists and mappings may nest."""


@attrs.frozen(eq=False, slots=False)
class Node:
    """A value, where its user wrote it, and ``notes`` on how it came to stand where it stands.

    It is one of the four below: a gap, a scalar, a list or a mapping.
    """

    span: TextSpan
    notes: tuple[str, ...] = attrs.field(default=(), kw_only=True)

    @property
    def text(self) -> str | None:
        """The string that this is, if it is one."""
        return self.value if isinstance(self, Scalar) and isinstance(self.value, str) else None

    @property
    def children(self) -> Sequence[Node]:
        """The values that a list or mapping holds."""
        if isinstance(self, Map):
            return [item.value for item in self.entries.values()]
        return self.items if isinstance(self, List) else ()

    @cached_property
    def size(self) -> int:
        """How many values this is."""
        return 1 + sum(child.size for child in self.children)

    @cached_property
    def depth(self) -> int:
        """How deep lists and mappings nest."""
        return max((1 + child.depth for child in self.children), default=0)

    @cached_property
    def dynamic(self) -> bool:
        """Whether there may be variables in it."""
        if isinstance(self, Scalar):
            return not self.literal and "$" in (self.text or "")
        return any(child.dynamic for child in self.children)

    def get(self, part: str | int) -> Node | None:
        """The value of a key or the item at an index, if this is a mapping or list that has it."""
        if isinstance(self, List) and isinstance(part, int):
            return self.items[part] if 0 <= part < len(self.items) else None
        item = self.entries.get(part) if isinstance(self, Map) and isinstance(part, str) else None
        return None if item is None else item.value

    def items_at(self, key: str) -> Sequence[Node]:
        """The items of the list that the value of a key is; none if it is no list."""
        value = self.get(key)
        return value.items if isinstance(value, List) else ()

    def text_at(self, key: str) -> str | None:
        """The string that the value of a key is, if it is one."""
        value = self.get(key)
        return None if value is None else value.text


@attrs.frozen(eq=False, slots=False)
class Gap(Node):
    """Stands where a value could not be made and a problem has already been reported; what reads it keeps quiet."""


@attrs.frozen(eq=False, slots=False)
class Scalar(Node):
    """A string, number, truth value or null; in one that is ``literal``, ``${`` means itself."""

    value: bool | int | float | str | None
    span: TextSpan
    literal: bool = attrs.field(default=False, kw_only=True)


@attrs.frozen(eq=False, slots=False)
class List(Node):
    """A list.  ``head`` is what to point at where the list as a whole lacks something."""

    items: tuple[Node, ...]
    span: TextSpan
    head: TextSpan = attrs.field(default=attrs.Factory(lambda self: self.span, takes_self=True), kw_only=True)

    def set(self, index: int, value: Node) -> List:
        """This list with another item."""
        return attrs.evolve(self, items=(*self.items[:index], value, *self.items[index + 1 :]))


@attrs.frozen(eq=False)
class MapItem:
    """One key of a mapping with its value."""

    key: TextSpan
    value: Node


@attrs.frozen(eq=False, slots=False)
class Map(Node):
    """A mapping, in the order of writing; ``head`` as for lists."""

    entries: dict[str, MapItem]
    span: TextSpan
    head: TextSpan = attrs.field(default=attrs.Factory(lambda self: self.span, takes_self=True), kw_only=True)

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


class GAP:
    """The plain form of a :class:`Gap`."""


# ------------------------------------------------------------------------------------------------ what is done with it


def noted(node: Node, note: str) -> Node:
    """The same node with one more line on how its value came to stand where it stands."""
    return attrs.evolve(node, notes=(*node.notes, note))


def mapped(node: Node, change: Callable[[Node], Node]) -> Node:
    """A node with every child changed; the same node where none is."""
    new = [change(child) for child in node.children]
    if all(one is other for one, other in zip(new, node.children, strict=True)):
        return node
    if isinstance(node, List):
        return attrs.evolve(node, items=tuple(new))
    assert isinstance(node, Map)
    pairs = zip(node.entries.items(), new, strict=True)
    return node.with_entries({key: MapItem(item.key, value) for (key, item), value in pairs})


def merge(base: Node, over: Node) -> Node:
    """``over`` laid on ``base`` key by key; anything but two mappings, and a component of another type, is replaced."""
    if not isinstance(base, Map) or not isinstance(over, Map):
        return over
    types = {node.value for node in (base.get("type"), over.get("type")) if isinstance(node, Scalar)}
    if len(types) > 1:
        return over
    entries = dict(base.entries)
    for key, item in over.entries.items():
        below = entries.get(key)
        entries[key] = item if below is None else MapItem(item.key, merge(below.value, item.value))
    return over.with_entries(entries)


def plain(node: Node, memo: dict[Node, Any] | None = None) -> Any:
    """The data of a tree without places; one node becomes one object, wherever it stands."""
    memo = {} if memo is None else memo
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Gap):
        return GAP
    if node not in memo:
        values = [plain(child, memo) for child in node.children]
        memo[node] = dict(zip(node.entries, values, strict=True)) if isinstance(node, Map) else values
    return memo[node]


def as_read(value: Any) -> Any:
    """Plain data with dictionaries and lists alone, as a manifest's text gives it."""
    if isinstance(value, Mapping):
        return {key: as_read(item) for key, item in value.items()}
    return [as_read(item) for item in value] if isinstance(value, list | tuple) else value


def keys_of_sources(node: Node | None, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Every value of a tree that came from a teacher's configuration, with its key there."""
    if isinstance(node, List | Map):
        parts: Iterable[str | int] = node.entries if isinstance(node, Map) else range(len(node.items))
        for part, child in zip(parts, node.children, strict=True):
            yield from keys_of_sources(child, (*path, part))
    elif node is not None and node.span.source.key is not None:
        yield path, node.span.source.key


def find(root: Node, path: Path) -> Node | None:
    """The node at a path, if it leads to one."""
    node: Node | None = root
    for part in path:
        node = None if node is None else node.get(part)
    return node


def problem_at(root: Node, fault: Fault) -> ManifestProblem:
    """A fault with the place of what it is about: of the nearest node above where its path leads to nothing."""
    node, key, notes = root, None, dict.fromkeys(root.notes)
    is_missing = fault.message.startswith("missing key")
    for part in fault.path:
        child = node.get(part)
        if child is None:
            is_missing, key = True, None
            break
        key = node.entries[str(part)].key if isinstance(node, Map) else None
        node = child
        notes.update(dict.fromkeys(node.notes))
    span = key if fault.at == "key" and key is not None else node.span
    if is_missing and isinstance(node, Map | List):
        span = node.head
    about = attrs.asdict(fault, filter=attrs.filters.exclude("message", "at"))
    return span.problem(fault.message, **about, notes=tuple(notes))


def replaced_at(root: Node, path: Path, new: Node) -> Node:
    """The tree with another node at a path; the last key may be a new one."""
    if not path:
        return new
    part, rest = path[0], path[1:]
    if isinstance(root, List):
        assert isinstance(part, int)
        return root.set(part, replaced_at(root.items[part], rest, new))
    assert isinstance(root, Map) and isinstance(part, str)
    below = root.get(part)
    return root.set(part, new if below is None else replaced_at(below, rest, new))
