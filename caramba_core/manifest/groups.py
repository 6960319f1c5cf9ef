"""Groups: what one takes over from another (``extends``), and what a ``matrix`` of variables expands to."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Final

import attrs

from caramba_core.manifest.problem import ManifestProblem, Path, shown
from caramba_core.manifest.reading import Reading
from caramba_core.manifest.tree import Gap, List, Map, MapItem, Node, Scalar, list_of, map_of, merge, noted, plain
from caramba_core.manifest.variables import Mentions, Variables, declared
from caramba_core.suggestions import listing, nearest, suggestion

__all__ = ["expand_groups"]

_MOST: Final = 256
"""Groups that a manifest may expand to."""

_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9._]+")


def expand_groups(root: Map, inherited: Mapping[str, Node], *, reading: Reading, mentions: Mentions) -> Map:
    """The manifest with every group spelled out: no ``extends`` and no ``matrix`` left, ``vars`` still in place."""
    entry = root.entries.get("groups")
    if entry is None or not isinstance(entry.value, List):
        return root
    problems = reading.problems
    expansion = _Expansion(entry.value, inherited, problems)
    variables = declared(root.entries["vars"].value, [], ()) if "vars" in root.entries else {}
    groups: list[Node] = []
    for index, item in enumerate(entry.value.items):
        group = expansion.extended(item, ("groups", index), ())
        if isinstance(group, Map) and "matrix" in group.entries:
            groups.extend(_matrix(group, ("groups", index), variables, reading, mentions))
        else:
            groups.append(group)
        if len(groups) > _MOST:
            problems.append(item.span.problem(f"the groups expand to more than {_MOST}", path=("groups", index)))
            break
    expanded = list_of(groups, entry.value.span, head=entry.value.head, notes=entry.value.notes)
    return map_of({**root.entries, "groups": MapItem(entry.key, expanded)}, root.span, head=root.head, notes=root.notes)


@attrs.define
class _Expansion:
    own: List
    inherited: Mapping[str, Node]
    problems: list[ManifestProblem]
    circles: list[Node] = attrs.field(factory=list)
    """Groups of circles that have been reported."""

    def _named(self, name: str, asking: Node) -> Node | None:
        """The group of a name: one of this manifest, else one of those that it extends."""
        for item in self.own.items:
            if item is not asking and _name(item) == name:
                return item
        return self.inherited.get(name) if self.inherited.get(name) is not asking else None

    def extended(self, item: Node, path: Path, chain: tuple[Node, ...]) -> Node:
        """A group laid on the one that it extends."""
        if not isinstance(item, Map) or "extends" not in item.entries:
            return item
        reference = item.entries["extends"].value
        own = _replaced(item, {"extends": None})
        if isinstance(reference, Gap):
            return reference
        path = (*path[:2], "extends")
        if not isinstance(reference, Scalar) or not isinstance(reference.value, str):
            found = shown(plain(reference))
            self.problems.append(
                reference.span.problem(
                    f"expected a group's name, found {found}", path=path, found=found, expected="a name"
                )
            )
            return Gap(reference.span)
        if any(other is item for other in (*chain, *self.circles)):
            if not any(other is item for other in self.circles):
                self.circles.extend(chain)
                names = " -> ".join(str(_name(other)) for other in (*chain[chain.index(item) :], item))
                problem = reference.span.problem(f"the groups {names} go round in a circle", path=path)
                self.problems.append(problem)
            return Gap(reference.span)
        base = self._named(reference.value, item)
        if base is None and not all(_name(other) for other in self.own.items):
            return Gap(reference.span)  # it may be the one whose name cannot be read, which is reported
        if base is None:
            known = dict.fromkeys(name for node in (*self.own.items, *self.inherited.values()) if (name := _name(node)))
            known.pop(_name(item) or "", None)
            near = nearest(reference.value, known)
            self.problems.append(
                reference.span.problem(
                    f"there is no group {reference.value!r}{suggestion(near)}",
                    path=path,
                    expected=None if near else f"one of {listing(known)}",
                )
            )
            return Gap(reference.span)
        below = self.extended(base, path, (*chain, item))
        if not isinstance(below, Map):
            return Gap(reference.span)
        note = f"taken over from the group {reference.value} at {reference.span.place}"
        taken = {key: MapItem(entry.key, noted(entry.value, note)) for key, entry in below.entries.items()}
        return merge(_replaced(below, {**taken, "name": None}), own)


def _matrix(
    group: Map, path: Path, variables: Mapping[str, MapItem], reading: Reading, mentions: Mentions
) -> list[Node]:
    """One group for each combination of the values that ``matrix:`` gives its variables."""
    problems = reading.problems
    own = declared(group.entries["vars"].value, [], ()) if "vars" in group.entries else {}
    scope = Variables({**variables, **own}, reading=reading, mentions=mentions)
    axes: list[tuple[str, MapItem, tuple[Node, ...]]] = []
    axis_path = (*path, "matrix")
    for name, entry in declared(group.entries["matrix"].value, problems, axis_path).items():
        values = scope.resolve(entry.value)
        if isinstance(values, List) and values.items:
            axes.append((name, entry, values.items))
        elif not isinstance(values, Gap):
            found = shown(plain(values))
            problems.append(
                values.span.problem(
                    f"expected a list of values, found {found}",
                    path=(*axis_path, name),
                    found=found,
                    expected="a list with a value for each group",
                )
            )
    without = _replaced(group, {"matrix": None})
    if not axes:
        return [without]
    combinations = 1
    for _, _, values_of_axis in axes:
        combinations *= len(values_of_axis)
    if combinations > _MOST:
        problems.append(
            group.entries["matrix"].key.problem(
                f"this makes {combinations} groups", path=axis_path, expected=f"at most {_MOST}"
            )
        )
        return [without]
    expanded: list[Node] = []
    for values_here in itertools.product(*(values_of_axis for _, _, values_of_axis in axes)):
        chosen = {name: MapItem(entry.key, value) for (name, entry, _), value in zip(axes, values_here, strict=True)}
        variables_node = map_of({**own, **chosen}, group.entries["matrix"].value.span)
        named = _suffixed(without, chosen)
        expanded.append(_replaced(named, {"vars": MapItem(group.entries["matrix"].key, variables_node)}))
    return expanded


def _suffixed(group: Map, chosen: Mapping[str, MapItem]) -> Map:
    """A name of its own for each combination, unless the user's name is made from variables."""
    entry = group.entries.get("name")
    if (
        entry is None
        or not isinstance(entry.value, Scalar)
        or not isinstance(entry.value.value, str)
        or entry.value.dynamic
    ):
        return group
    parts = [entry.value.value]
    for name, value in chosen.items():
        text = plain(value.value)
        short = _NOT_IN_NAMES.sub("-", str(text).lower() if isinstance(text, bool) else str(text)).strip("-")
        parts.append(f"{name}_{short}")
    return _replaced(group, {"name": MapItem(entry.key, Scalar("-".join(parts), entry.value.span, entry.value.notes))})


def _replaced(node: Map, changes: Mapping[str, MapItem | None]) -> Map:
    """A mapping with entries set, or left out where the change is ``None``."""
    entries = {**node.entries, **changes}
    kept = {key: entry for key, entry in entries.items() if entry is not None}
    return map_of(kept, node.span, head=node.head, notes=node.notes)


def _name(node: Node) -> str | None:
    entry = node.entries.get("name") if isinstance(node, Map) else None
    value = entry.value.value if entry is not None and isinstance(entry.value, Scalar) else None
    return value if isinstance(value, str) else None
