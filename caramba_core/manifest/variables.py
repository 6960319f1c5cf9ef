"""``vars`` and ``${...}``: filling variables in, each value keeping the place where its user wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from caramba_core.manifest.expressions import NAME, ExpressionError, Piece, evaluate, split
from caramba_core.manifest.problem import ManifestProblem, shown
from caramba_core.manifest.reading import Reading
from caramba_core.manifest.source import TextSpan
from caramba_core.manifest.tree import (
    MAX_DEPTH,
    Gap,
    List,
    Map,
    MapItem,
    Node,
    Scalar,
    list_of,
    map_of,
    noted,
    plain,
)
from caramba_core.suggestions import listing, nearest, suggestion

__all__ = ["Mentions", "Variables", "declared", "known_variables"]

_DEEPEST: Final = 24
"""How long a chain of variables that refer to one another may be."""

_MOST_PLACES: Final = 20
"""Places of one unknown name that are reported."""

_LONGEST: Final = 10_000
"""Characters of a string that is put together from variables."""


class _Unresolved(Exception):  # noqa: N818 - control flow: the problem has been reported
    """An operand that cannot be had."""


@attrs.define
class Mentions:
    """Who asks for which variable, over all scopes, to tell a misspelt use from a misspelt declaration."""

    used: set[str] = attrs.field(factory=set)
    unknown: dict[str, dict[int, tuple[TextSpan, bool]]] = attrs.field(factory=dict)
    """By name, the places that ask for it (one a place), and whether that place is a group that sets it."""

    def miss(self, name: str, span: TextSpan, *, setting: bool = False) -> None:
        """Note a name that is not declared."""
        places = self.unknown.setdefault(name, {})
        places.setdefault(hash((span.source, span.start)), (span, setting))

    def problems(self, variables: Mapping[str, MapItem]) -> list[ManifestProblem]:
        """One problem for each misspelt name, at the use or at the declaration, whichever is alone."""
        unused = {name: entry for name, entry in variables.items() if name not in self.used}
        found: list[ManifestProblem] = []
        for name, places in self.unknown.items():
            spans = [span for span, _ in places.values()]
            idle = nearest(name, unused)
            if idle and len(spans) > 1:
                entry = unused.pop(idle[0])
                uses = tuple(f"${{{name}}} is asked for at {span.place}" for span in spans[:3])
                found.append(
                    entry.key.problem(
                        f"did you mean {name!r}? No variable has that name, and nothing uses {idle[0]!r}",
                        path=("vars", idle[0]),
                        notes=uses,
                    )
                )
                continue
            near = nearest(name, variables)
            for span, setting in list(places.values())[:_MOST_PLACES]:
                found.append(
                    _unknown(name, span, near, near[:1] if near and near[0] in unused else (), variables, setting)
                )
        return found


def _unknown(
    name: str,
    span: TextSpan,
    near: tuple[str, ...],
    idle: tuple[str, ...],
    variables: Mapping[str, MapItem],
    setting: bool,
) -> ManifestProblem:
    hint = "groups set variables that the manifest's own vars: declares" if setting else None
    if idle and not setting:
        return span.problem(
            f"no variable {name!r} is declared, but {idle[0]!r} is and nothing uses it: one of the two is misspelt",
            notes=(f"{idle[0]!r} is declared at {variables[idle[0]].key.place}",),
        )
    return span.problem(
        f"unknown variable {name!r}{suggestion(near)}",
        expected=None if near else known_variables(variables),
        hint=hint,
    )


def known_variables(variables: Mapping[str, MapItem]) -> str:
    """What to expect in place of a name that is none of these."""
    return (
        f"one of the manifest's vars: {listing(variables)}" if variables else "a name that vars: declares; it has none"
    )


def declared(node: Node | None, problems: list[ManifestProblem], path: tuple[str | int, ...]) -> dict[str, MapItem]:
    """The variables of a ``vars:`` mapping."""
    if node is None or isinstance(node, Gap) or (isinstance(node, Scalar) and node.value is None):
        return {}
    if not isinstance(node, Map):
        found = shown(plain(node))
        problems.append(
            node.span.problem(
                f"expected a mapping of variables, found {found}", path=path, found=found, expected="a mapping"
            )
        )
        return {}
    variables: dict[str, MapItem] = {}
    for name, entry in node.entries.items():
        if NAME.fullmatch(name):
            variables[name] = entry
        else:
            problems.append(
                entry.key.problem(
                    f"{name!r} cannot be the name of a variable",
                    path=(*path, name),
                    expected="letters, digits and _, not a digit first",
                )
            )
    return variables


class Variables:
    """The variables that hold for the manifest itself, or for one group.

    Variables refer to one another in any order and are looked up late: a group's value changes every variable that is
    made from it.
    """

    def __init__(self, variables: Mapping[str, MapItem], *, reading: Reading, mentions: Mentions) -> None:
        self.variables = variables
        self._problems = reading.problems
        self._budget = reading.expanded
        self._mentions = mentions
        self._values: dict[str, Node] = {}
        self._active: list[str] = []
        self._memo: dict[int, tuple[Node, Node]] = {}

    def resolve(self, node: Node) -> Node:
        """The tree with every ``${...}`` replaced; the same node where there is none."""
        if not node.dynamic:
            return node
        known = self._memo.get(id(node))
        if known is not None:
            return known[1]
        result: Node
        if isinstance(node, Scalar):
            result = self._text(node)
        elif isinstance(node, List):
            result = list_of(map(self.resolve, node.items), node.span, head=node.head, notes=node.notes)
        else:
            assert isinstance(node, Map)
            entries = {key: MapItem(entry.key, self.resolve(entry.value)) for key, entry in node.entries.items()}
            result = map_of(entries, node.span, head=node.head, notes=node.notes)
        self._memo[id(node)] = (node, result)
        return result

    # ------------------------------------------------------------------------------------------------ one string

    def _text(self, node: Scalar) -> Node:
        assert isinstance(node.value, str)
        if len(node.value) > _LONGEST:
            self._problems.append(
                node.span.problem(
                    f"a text with variables has at most {_LONGEST} characters, this one {len(node.value)}"
                )
            )
            return Gap(node.span)
        try:
            parts = split(node.value)
            if len(parts) == 1 and parts[0].expression:
                return self._whole(node, parts[0])
            pieces = [self._piece(node, part) if part.expression else part.text for part in parts]
        except ExpressionError as error:
            self._report(node, error, 0)
            return Gap(node.span)
        except _Unresolved:
            return Gap(node.span)
        text = "".join(pieces)
        if len(text) > _LONGEST:
            self._problems.append(node.span.problem(f"this grows to more than {_LONGEST} characters"))
            return Gap(node.span)
        return Scalar(text, node.span, node.notes, dynamic=False)

    def _whole(self, node: Scalar, part: Piece) -> Node:
        """The value of a string that is one ``${...}``: of any type."""
        name = part.name
        if name is None:
            try:
                value = self._integer(node, part)
            except _Unresolved:
                return Gap(node.span)
            return Scalar(value, node.span, (*node.notes, f"{node.value} is {value} here"), dynamic=False)
        value_node = self._value(name, _place_of(node, part, name))
        if isinstance(value_node, Gap):
            return value_node
        self._budget.spend(value_node.size, node.span)
        return noted(value_node, f"used as ${{{name}}} at {node.span.place}")

    def _piece(self, node: Scalar, part: Piece) -> str:
        """The text of an expression that stands inside a longer string."""
        name = part.name
        if name is None:
            return str(self._integer(node, part))
        span = _place_of(node, part, name)
        value = self._value(name, span)
        if isinstance(value, Gap):
            raise _Unresolved
        if (
            isinstance(value, Scalar)
            and isinstance(value.value, str | int | float)
            and not isinstance(value.value, bool)
        ):
            return str(value.value)
        found = shown(plain(value))
        self._problems.append(
            value.span.problem(
                f"{found} cannot stand inside a text",
                found=found,
                expected="a string or a number",
                notes=(f"used as ${{{name}}} at {span.place}",),
            )
        )
        raise _Unresolved

    def _integer(self, node: Scalar, part: Piece) -> int:
        def lookup(name: str, offset: int) -> int:
            span = _inside(node, part.start + offset, part.start + offset + len(name))
            value = self._value(name, span)
            if isinstance(value, Gap):
                raise _Unresolved
            if isinstance(value, Scalar) and isinstance(value.value, int) and not isinstance(value.value, bool):
                return value.value
            found = shown(plain(value))
            self._problems.append(
                value.span.problem(
                    f"arithmetic takes integers, {name} is {found}",
                    found=found,
                    expected="an integer",
                    notes=(f"used in ${{{part.text}}} at {span.place}",),
                )
            )
            raise _Unresolved

        try:
            return evaluate(part.text, lookup)
        except ExpressionError as error:
            self._report(node, error, part.start)
            raise _Unresolved from None

    def _report(self, node: Scalar, error: ExpressionError, offset: int) -> None:
        span = _inside(node, offset + error.start, offset + error.end)
        self._problems.append(span.problem(error.message, hint=error.hint, notes=node.notes))

    # ------------------------------------------------------------------------------------------------ one variable

    def _value(self, name: str, span: TextSpan) -> Node:
        """What a variable stands for; a gap where that is a problem, which has been reported."""
        known = self._values.get(name)
        if known is not None:
            return known
        entry = self.variables.get(name)
        if entry is None:
            self._mentions.miss(name, span)
            return Gap(span)
        self._mentions.used.add(name)
        if name in self._active:
            cycle = " -> ".join([*self._active[self._active.index(name) :], name])
            self._problems.append(span.problem(f"the variables {cycle} go round in a circle"))
            return Gap(span)
        if len(self._active) >= _DEEPEST:
            self._problems.append(span.problem(f"variables refer to one another more than {_DEEPEST} deep here"))
            return Gap(span)
        self._active.append(name)
        try:
            value = self.resolve(entry.value)
        finally:
            self._active.pop()
        if value.depth > MAX_DEPTH:
            self._problems.append(span.problem(f"lists and mappings nest more than {MAX_DEPTH} deep here"))
            value = Gap(span)
        self._values[name] = value
        return value


def _place_of(node: Scalar, part: Piece, name: str) -> TextSpan:
    """Where the name stands that is all of an expression."""
    start = part.start + len(part.text) - len(part.text.lstrip())
    return _inside(node, start, start + len(name))


def _inside(node: Scalar, start: int, end: int) -> TextSpan:
    """Where a piece of a string stands; the whole string where escapes or line breaks shift it."""
    written = node.span.source.text[node.span.start : node.span.end]
    assert isinstance(node.value, str)
    quote = 1 if written[:1] in ("'", '"') else 0
    if written[quote : quote + len(node.value)] != node.value:
        return node.span
    return TextSpan(node.span.source, node.span.start + quote + start, node.span.start + quote + end)
