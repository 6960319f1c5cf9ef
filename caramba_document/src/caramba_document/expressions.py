"""What stands between ``${`` and ``}``: a variable's name, or integer arithmetic over variables.

The arithmetic is Python's with ``+ - * // %``, parentheses, integers and names; ``$${`` is a plain ``${``.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from string import whitespace
from typing import Final, TypeAlias

import attrs

from caramba_document.scalars import MAX_INTEGER

__all__ = ["NAME", "USE", "ExpressionError", "evaluate"]

NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""What a variable may be called."""

USE: Final = re.compile(r"\$\$\{|\$\{(?:([^}]*)\})?")
"""``${...}`` with what stands in it; ``${`` alone if it is never closed; or ``$${``."""

Lookup: TypeAlias = Callable[[str, int], int]
"""The integer that a name at an offset of the expression stands for."""

_WORD: Final = re.compile(r"[\w.]+|\*\*|//|.", re.DOTALL)
_NOT_PYTHON: Final = re.compile(rf"({NAME.pattern})|(\s|(?<![\w.])0+(?=[0-9]))|[^ -~]|#")
_OPERATORS: Final[dict[type, tuple[str, Callable[[int, int], int]]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.FloorDiv: ("//", operator.floordiv),
    ast.Mod: ("%", operator.mod),
}
_DEEPEST: Final = 16
_LONGEST: Final = 500


@attrs.define(eq=False)
class ExpressionError(ValueError):
    """What is wrong with an expression; ``start`` and ``end`` are offsets into it."""

    message: str
    start: int
    end: int
    hint: str | None = None


def evaluate(expression: str, lookup: Lookup) -> int:
    """The value; raises :class:`ExpressionError`, and whatever ``lookup`` raises."""
    start, end = len(expression) - len(expression.lstrip()), len(expression)
    if end - start > _LONGEST:
        raise ExpressionError(f"an expression has at most {_LONGEST} characters", start, end)
    # Made Python without moving anything: names may be its keywords (so all become underscores), white space may
    # indent (a form feed does not), 010 is ten, and there are no comments.
    python = _NOT_PYTHON.sub(lambda m: ("_" if m[1] else "\f" if m[2] else "?") * len(m[0]), expression)
    try:
        value = _value(ast.parse(python, mode="eval").body, expression, lookup, 0)
    except SyntaxError as error:
        raise _misplaced(expression, (error.offset or 0) - 1) from None
    if abs(value) > MAX_INTEGER:
        raise ExpressionError("the result does not fit in 64 bits", start, end)
    return value


def _value(node: ast.expr, text: str, lookup: Lookup, depth: int) -> int:
    """The value of a node; sums and products nest on their left side, as deep as they are long."""
    chain: list[ast.BinOp] = []
    while isinstance(node, ast.BinOp):
        chain.append(node)
        node = node.left
    start = node.col_offset
    if depth > _DEEPEST:
        raise ExpressionError(f"the expression nests more than {_DEEPEST} deep", start, start + 1)
    if isinstance(node, ast.Name):
        value = lookup(text[start : node.end_col_offset], start)
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        value = node.value
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = -_value(node.operand, text, lookup, depth + 1)
    else:
        raise _misplaced(text, start, node.end_col_offset)
    for operation in reversed(chain):
        value = _applied(operation, value, _value(operation.right, text, lookup, depth + 1), text)
    return value


def _applied(operation: ast.BinOp, left: int, right: int, text: str) -> int:
    symbol, function = _OPERATORS.get(type(operation.op), (None, None))
    end, stop = operation.left.end_col_offset, operation.right.end_col_offset
    assert end is not None and stop is not None
    start = end + len(text[end:]) - len(text[end:].lstrip(f"){whitespace}"))
    if symbol is None or function is None:
        raise _misplaced(text, start)
    if symbol in ("//", "%") and right == 0:
        raise ExpressionError("this divides by zero", start, stop)
    return function(left, right)


def _misplaced(text: str, start: int, end: int | None = None) -> ExpressionError:
    """What to say of a piece of an expression, of the word at an offset, or of the end, that cannot stand there."""
    if end is None:
        word = next((word for word in _WORD.finditer(text) if word.end() > start >= 0 and word[0].strip()), None)
        if word is None:
            message = "expected a variable, an integer or '(', but it ends here"
            return ExpressionError(message, len(text), len(text) + 1)
        start, end = word.span()
    found = text[start:end]
    if found == "(":
        return ExpressionError("the ( is never closed", start, end)
    if found == "/":
        return ExpressionError("/ would leave the integers", start, end, hint="write // for whole division")
    hint = "arithmetic takes integers" if found[0].isdigit() else "operators are + - * // %"
    return ExpressionError(f"{found!r} does not belong here", start, end, hint=hint)
