"""Groups: what one takes over from another (``extends``), and what a ``matrix`` of variables expands to."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs
from caramba_document.problem import Path, shown
from caramba_document.reading import Reading
from caramba_document.suggestions import unknown
from caramba_document.tree import Gap, List, Map, MapItem, Node, Scalar, merge, noted, plain
from caramba_document.variables import Variables, declared

__all__ = ["expand_groups"]

_MOST: Final = 256
"""Groups that a manifest may expand to."""

_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9._]+")


def expand_groups(root: Map, inherited: Mapping[str, Sequence[Node]], reading: Reading) -> Map:
    """The manifest with every group spelled out: no ``extends`` and no ``matrix`` left, ``vars`` still in place."""
    own = root.get("groups")
    if not isinstance(own, List):
        return root
    expansion = _Expansion(own.items, inherited, reading)
    variables = declared(root.get("vars"), Reading(), ())  # which reports nothing here
    groups: list[Node] = []
    for index, item in enumerate(own.items):
        path = ("groups", index)
        group = expansion.extended(item, (*path, "extends"), ())
        if isinstance(group, Map) and "matrix" in group.entries:
            groups.extend(_matrix(group, (*path, "matrix"), variables, reading))
        else:
            groups.append(group)
        if len(groups) > _MOST:
            reading.gap(item.span, f"the groups expand to more than {_MOST}", path=path)
            break
    return root.set("groups", attrs.evolve(own, items=tuple(groups)))


@attrs.define
class _Expansion:
    own: Sequence[Node]
    inherited: Mapping[str, Sequence[Node]]
    reading: Reading
    circles: list[Node] = attrs.field(factory=list)
    """Groups of circles that have been reported."""

    def extended(self, item: Node, path: Path, chain: tuple[Node, ...]) -> Node:
        """A group laid on the one that it extends; ``chain`` are those that extend it."""
        reference = item.get("extends")
        if reference is None or not isinstance(item, Map):
            return item
        name = reference.text
        if name is None:
            return self.reading.mismatch(reference, "a group's name", path)
        if item in self.circles:
            return Gap(reference.span)
        if item in chain:
            self.circles.extend(chain)
            names = " -> ".join(str(other.text_at("name")) for other in (*chain[chain.index(item) :], item))
            return self.reading.gap(reference.span, f"the groups {names} go round in a circle", path=path)
        # One of this manifest, else one of those that it extends; of a group's own name one that it is laid over.
        older = self.inherited.get(name, ())
        own = [other for other in self.own if other.text_at("name") == name and other is not item]
        if name == item.text_at("name") and item in older:
            own, older = [], older[: older.index(item)]
        base = next(iter((*own, *reversed(older))), None)
        if base is None:
            return self._unknown(name, item, reference, path)
        below = self.extended(base, path, (*chain, item))
        if not isinstance(below, Map):
            return Gap(reference.span)
        note = f"taken over from the group {name} at {reference.span.place}"
        taken = {key: MapItem(entry.key, noted(entry.value, note)) for key, entry in below.entries.items()}
        if "name" not in item.entries:
            del taken["name"]
        return merge(below.with_entries(taken), item.without("extends"))

    def _unknown(self, name: str, item: Node, reference: Node, path: Path) -> Gap:
        names = [*(other.text_at("name") for other in self.own), *self.inherited]
        if not all(names):
            return Gap(reference.span)  # it may be the one whose name cannot be read, which is reported
        known = [other for other in dict.fromkeys(map(str, names)) if other != item.text_at("name")]
        message, expected = unknown(f"there is no group {name!r}", name, known)
        return self.reading.gap(reference.span, message, path=path, expected=expected)


def _matrix(group: Map, path: Path, variables: Mapping[str, MapItem], reading: Reading) -> list[Map]:
    """One group for each combination of the values that ``matrix:`` gives its variables."""
    matrix, group = group.entries["matrix"], group.without("matrix")
    own = declared(group.get("vars"), Reading(), ())
    scope = Variables({**variables, **own}, reading)
    axes: dict[str, list[MapItem]] = {}
    for name, item in declared(matrix.value, reading, path).items():
        values = scope.resolve(item.value)
        if isinstance(values, List) and values.items:
            axes[name] = [MapItem(item.key, value) for value in values.items]
        else:
            reading.mismatch(values, "a list of values, one for each group", (*path, name))
    if not _is_named(group):
        axes = {name: _distinct(items, (*path, name), reading) for name, items in axes.items()}
    combinations = math.prod(map(len, axes.values()))
    if combinations > _MOST:
        reading.gap(matrix.key, f"this makes {combinations} groups", path=path, expected=f"at most {_MOST}")
    if combinations > _MOST or not axes:
        return [group]
    chosen = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return [_suffixed(group, one).set("vars", Map({**own, **one}, matrix.value.span)) for one in chosen]


def _suffixed(group: Map, chosen: Mapping[str, MapItem]) -> Map:
    """A name of its own for each combination, unless the user's name is made from variables."""
    name = group.get("name")
    if name is None or name.text is None or _is_named(group):
        return group
    parts = [name.text, *(f"{variable}_{_in_name(plain(item.value))}" for variable, item in chosen.items())]
    return group.set("name", Scalar("-".join(parts), name.span, notes=name.notes))


def _is_named(group: Map) -> bool:
    """Whether the user's own name is made from variables."""
    name = group.get("name")
    return name is not None and name.dynamic


def _in_name(value: Any) -> str:
    """A value in the name of a folder; of numbers the sign stays."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value).replace("+", "")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return _NOT_IN_NAMES.sub("-", text).strip("-")


def _distinct(items: Sequence[MapItem], path: Path, reading: Reading) -> list[MapItem]:
    """The values that give groups names of their own; of others it is reported that they do not."""
    first: dict[str, MapItem] = {}
    for index, item in enumerate(items):
        value = plain(item.value)
        other = first.setdefault(_in_name(value).casefold(), item)  # names are folders, where capitals may not count
        if other is item:
            continue
        message, hint = f"{shown(value)} is there twice", None
        if plain(other.value) != value:
            message = f"{shown(value)} and {shown(plain(other.value))} would give two groups one name"
            hint = "make the group's name from variables: name: NAME-${VARIABLE}"
        reading.gap(item.value.span, message, path=(*path, index), hint=hint)
    return list(first.values())
