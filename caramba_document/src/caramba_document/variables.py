"""``vars`` and ``${...}``: filling variables in, each value keeping the place where its user wrote it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from caramba_document.expressions import NAME, USE, ExpressionError, evaluate
from caramba_document.problem import ManifestProblem, Path
from caramba_document.reading import Reading, check_depth
from caramba_document.source import TextSpan
from caramba_document.suggestions import nearest, unknown
from caramba_document.tree import Gap, Map, MapItem, Node, Scalar, mapped, noted

__all__ = ["Variables", "declared", "escaped", "misspelt", "unknown_variable"]

_DEEPEST: Final = 24
"""How long a chain of variables that refer to one another may be."""

_MOST_PLACES: Final = 20
"""Places of one unknown name that are reported."""

_LONGEST: Final = 10_000
"""Characters of a string that is put together from variables."""


def declared(node: Node | None, reading: Reading, path: Path) -> dict[str, MapItem]:
    """The variables of a ``vars:`` mapping."""
    if node is None or (isinstance(node, Scalar) and node.value is None):
        return {}
    if not isinstance(node, Map):
        reading.mismatch(node, "a mapping of variables", path)
        return {}
    for name, item in node.entries.items():
        if not NAME.fullmatch(name):
            message, expected = f"{name!r} cannot be the name of a variable", "letters, digits and _, not a digit first"
            reading.gap(item.key, message, path=(*path, name), expected=expected)
    return {name: item for name, item in node.entries.items() if NAME.fullmatch(name)}


def misspelt(variables: Mapping[str, MapItem], reading: Reading) -> None:
    """Report every name that is not declared: at its uses, or at the declaration where that alone is misspelt."""
    unused = {name: item for name, item in variables.items() if name not in reading.used}
    for name, places in reading.unknown.items():
        asked = list(places.values())
        idle = nearest(name, unused)
        if idle and len(asked) > 1:
            reading.gap(
                unused.pop(idle[0]).key,
                f"did you mean {name!r}? No variable has that name, and nothing uses {idle[0]!r}",
                path=("vars", idle[0]),
                notes=tuple(f"${{{name}}} is asked for at {span.place}" for span, _ in asked[:3]),
            )
            continue
        near = nearest(name, variables)
        for span, setting in asked[:_MOST_PLACES]:
            if setting:
                hint = "groups set variables that the manifest's own vars: declares"
                reading.report(unknown_variable(name, span, variables, hint))
            elif near and near[0] in unused:
                reading.gap(
                    span,
                    f"no variable {name!r} is declared, but {near[0]!r} is and nothing uses it: "
                    "one of the two is misspelt",
                    notes=(f"{near[0]!r} is declared at {variables[near[0]].key.place}",),
                )
            else:
                reading.report(unknown_variable(name, span, variables))


def unknown_variable(
    name: str, span: TextSpan, variables: Mapping[str, MapItem], hint: str | None = None
) -> ManifestProblem:
    """The problem with a name that is none of these variables."""
    known = "one of the manifest's vars: {}" if variables else "a name that vars: declares; it has none"
    message, expected = unknown(f"unknown variable {name!r}", name, variables, known)
    return span.problem(message, expected=expected, hint=hint)


class _UnresolvedError(Exception):
    """A variable has no value, which has been reported."""


class Variables:
    """The variables that hold for the manifest itself, or for one group.

    Variables refer to one another in any order and are looked up late: a group's value changes every variable that is
    made from it.
    """

    def __init__(self, variables: Mapping[str, MapItem], reading: Reading) -> None:
        self.variables = variables
        self._reading = reading
        self._values: dict[str, Node] = {}
        self._active: list[str] = []
        self._depth = 0
        self._resolved: dict[Node, Node] = {}

    def resolve(self, node: Node) -> Node:
        """The tree with every ``${...}`` replaced; the same node where there is none."""
        if not node.dynamic:
            return node
        if node not in self._resolved and isinstance(node, Scalar):
            self._resolved[node] = self._text(node)
        elif node not in self._resolved:
            self._depth += 1
            check_depth(self._depth, node.span)
            self._resolved[node] = mapped(node, self.resolve)
            self._depth -= 1
        return self._resolved[node]

    # ------------------------------------------------------------------------------------------------ one string

    def _text(self, node: Scalar) -> Node:
        assert isinstance(node.value, str)
        if len(node.value) > _LONGEST:
            message = f"a text with variables has at most {_LONGEST} characters, this one {len(node.value)}"
            return self._reading.gap(node.span, message)
        whole = USE.fullmatch(node.value)
        try:
            if whole is not None and whole[1] is not None:
                return self._value(node, whole)
            text = USE.sub(partial(self._inserted, node), node.value)
        except ExpressionError as error:
            span = _inside(node, error.start, error.end)
            return self._reading.gap(span, error.message, hint=error.hint, notes=node.notes)
        except _UnresolvedError:
            return Gap(node.span)
        if len(text) > _LONGEST:
            return self._reading.gap(node.span, f"this grows to more than {_LONGEST} characters")
        return Scalar(text, node.span, notes=node.notes, literal=True)

    def _value(self, node: Scalar, use: re.Match[str]) -> Node:
        """What a ``${...}`` stands for: of any type."""
        name = use[1].strip()
        if NAME.fullmatch(name):
            value = self._variable(name, _name_span(node, use))
            self._reading.expand(value.size, node.span)
            return noted(value, f"used as ${{{name}}} at {node.span.place}")
        # White space in place of what is in front keeps offsets into the expression equal to offsets into the string.
        number = evaluate(" " * use.start(1) + use[1], partial(self._operand, node, use[0]))
        return noted(Scalar(number, node.span, notes=node.notes), f"{use[0]} is {number} here")

    def _inserted(self, node: Scalar, use: re.Match[str]) -> str:
        """The text of a ``${...}`` that stands inside a longer string."""
        if use[0] == "$${":
            return "${"
        if use[1] is None:
            end = len(use.string)
            raise ExpressionError("the ${ is never closed", use.start(), end, hint="write $${ for a plain ${")
        note = f"used inside a text, as {use[0]} at {_name_span(node, use).place}"
        return str(self._typed(self._value(node, use), (str, int, float), "a string or a number", note))

    def _operand(self, node: Scalar, use: str, name: str, start: int) -> int:
        """The integer that a variable is."""
        span = _inside(node, start, start + len(name))
        note = f"{name} is used in {use} at {span.place}"
        return int(self._typed(self._variable(name, span), (int,), "an integer", note))

    def _typed(self, value: Node, types: tuple[type, ...], wanted: str, note: str) -> Any:
        """The plain value of a scalar of these types; raises :class:`_UnresolvedError` for anything else."""
        if isinstance(value, Scalar) and type(value.value) in types:
            return value.value
        self._reading.mismatch(value, wanted, notes=(note,))
        raise _UnresolvedError

    # ------------------------------------------------------------------------------------------------ one variable

    def _variable(self, name: str, span: TextSpan) -> Node:
        """The value of a variable that is asked for at a place; raises :class:`_UnresolvedError` where it has none."""
        if name not in self._values:
            item = self.variables.get(name)
            if item is None:
                self._reading.miss(name, span)
                raise _UnresolvedError
            self._reading.used.add(name)
            if name in self._active:
                cycle = " -> ".join([*self._active[self._active.index(name) :], name])
                raise self._unresolved(span, f"the variables {cycle} go round in a circle")
            if len(self._active) >= _DEEPEST:
                raise self._unresolved(span, f"variables refer to one another more than {_DEEPEST} deep here")
            self._active.append(name)
            value = self.resolve(item.value)
            self._active.pop()
            check_depth(value.depth, span)
            self._values[name] = value
        if isinstance(self._values[name], Gap):
            raise _UnresolvedError
        return self._values[name]

    def _unresolved(self, span: TextSpan, message: str) -> _UnresolvedError:
        self._reading.gap(span, message)
        return _UnresolvedError()


def _name_span(node: Scalar, use: re.Match[str]) -> TextSpan:
    """Where the name stands that is all of a ``${...}``."""
    end = use.start(1) + len(use[1].rstrip())
    return _inside(node, end - len(use[1].strip()), end)


def _inside(node: Scalar, start: int, end: int) -> TextSpan:
    """Where a piece of a string stands; the whole string where escapes or line breaks shift it."""
    written = node.span.source.text[node.span.start : node.span.end]
    assert isinstance(node.value, str)
    quote = 1 if written[:1] in ("'", '"') else 0
    if written[quote : quote + len(node.value)] != node.value:
        return node.span
    return TextSpan(node.span.source, node.span.start + quote + start, node.span.start + quote + end)


def escaped(value: Any) -> Any:
    """Strings in which ``${`` stands for itself, as a manifest writes it."""
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, list):
        return [escaped(item) for item in value]
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    return value
