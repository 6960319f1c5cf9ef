"""What stands between ``${`` and ``}``: a variable's name, or integer arithmetic over variables.

    expression = term (("+" | "-") term)*
    term       = factor (("*" | "//" | "%") factor)*
    factor     = "-" factor | "(" expression ")" | integer | name

``$${`` is a plain ``${``.  Nothing is evaluated but this grammar.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeAlias

import attrs

from caramba_core.manifest.scalars import MAX_INTEGER

__all__ = ["NAME", "ExpressionError", "Lookup", "Piece", "evaluate", "only_name", "split"]

NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""What a variable may be called."""

_TOKEN: Final = re.compile(rf"\s*(?:([0-9]+(?![.0-9A-Za-z_]))|({NAME.pattern})|(//|\*\*|[-+*%/()]))")
_SPACE: Final = re.compile(r"\s*")
_DEEPEST: Final = 16

Lookup: TypeAlias = Callable[[str, int], int]
"""The integer that a name at an offset of the expression stands for."""


class ExpressionError(ValueError):
    """What is wrong with an expression; ``start`` and ``end`` are offsets into it."""

    def __init__(self, message: str, start: int, end: int, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.start = start
        self.end = end
        self.hint = hint


@attrs.frozen
class Piece:
    """A piece of a string: literal text, or an expression that starts at ``start`` (behind its ``${``)."""

    text: str
    start: int
    expression: bool


def split(text: str) -> list[Piece]:
    """A string's literal pieces and expressions in order; raises :class:`ExpressionError` for an open ``${``."""
    parts: list[Piece] = []
    literal = ""
    index = 0
    while index < len(text):
        if text.startswith("$${", index):
            literal += "${"
            index += 3
        elif text.startswith("${", index):
            end = text.find("}", index)
            if end < 0:
                raise ExpressionError("the ${ is never closed", index, len(text), hint="write $${ for a plain ${")
            if literal:
                parts.append(Piece(literal, index, False))
                literal = ""
            parts.append(Piece(text[index + 2 : end], index + 2, True))
            index = end + 1
        else:
            literal += text[index]
            index += 1
    if literal or not parts:
        parts.append(Piece(literal, len(text), False))
    return parts


def only_name(expression: str) -> str | None:
    """The name, if the expression is nothing but one."""
    name = expression.strip()
    return name if NAME.fullmatch(name) else None


def evaluate(expression: str, lookup: Lookup) -> int:
    """The value; raises :class:`ExpressionError`, and whatever ``lookup`` raises."""
    parser = _Parser(expression, lookup)
    value = parser.sum(0)
    parser.expect_end()
    return value


class _Parser:
    def __init__(self, text: str, lookup: Lookup) -> None:
        self.text = text
        self.lookup = lookup
        self.index = 0

    def _peek(self) -> re.Match[str] | None:
        return _TOKEN.match(self.text, self.index)

    def _operator(self, *wanted: str) -> str | None:
        token = self._peek()
        if token is None or token[3] not in wanted:
            return None
        self.index = token.end()
        return token[3]

    def _here(self) -> int:
        space = _SPACE.match(self.text, self.index)
        assert space is not None
        return space.end()

    def expect_end(self) -> None:
        start = self._here()
        if start == len(self.text):
            return
        token = self._peek()
        if token is not None and token[3] == "/":
            raise ExpressionError("/ would leave the integers", start, start + 1, hint="write // for whole division")
        if token is not None and token[3] == "**":
            raise ExpressionError("there is no **", start, start + 2, hint="operators are + - * // %")
        end = token.end() if token is not None else start + 1
        raise ExpressionError(
            f"{self.text[start:end]!r} does not belong here", start, end, hint="operators are + - * // %"
        )

    def sum(self, depth: int) -> int:
        value = self._product(depth)
        while operator := self._operator("+", "-"):
            right = self._product(depth)
            value = self._bounded(value + right if operator == "+" else value - right)
        return value

    def _product(self, depth: int) -> int:
        value = self._factor(depth)
        while True:
            start = self._here()
            operator = self._operator("*", "//", "%")
            if operator is None:
                return value
            right = self._factor(depth)
            if operator != "*" and right == 0:
                raise ExpressionError("this divides by zero", start, self.index)
            value = self._bounded(
                value * right if operator == "*" else value // right if operator == "//" else value % right
            )

    def _factor(self, depth: int) -> int:
        start = self._here()
        if depth > _DEEPEST:
            raise ExpressionError(f"the expression nests more than {_DEEPEST} deep", start, start + 1)
        token = self._peek()
        if token is None or (token[3] is not None and token[3] not in "(-"):
            found = f"found {self.text[start]!r}" if start < len(self.text) else "but it ends here"
            wanted = f"expected a variable, an integer or '(', {found}"
            raise ExpressionError(wanted, start, start + 1, hint=self._number_hint(start))
        self.index = token.end()
        if token[1] is not None:
            return self._bounded(int(token[1]) if len(token[1]) < 30 else MAX_INTEGER + 1)
        if token[2] is not None:
            return self.lookup(token[2], start)
        if token[3] == "-":
            return -self._factor(depth + 1)
        value = self.sum(depth + 1)
        if self._operator(")") is None:
            raise ExpressionError("the ( is never closed", start, start + 1)
        return value

    def _number_hint(self, start: int) -> str | None:
        return "arithmetic takes integers" if self.text[start : start + 1].isdigit() else None

    def _bounded(self, value: int) -> int:
        if abs(value) > MAX_INTEGER:
            raise ExpressionError("the result does not fit in 64 bits", 0, len(self.text))
        return value
