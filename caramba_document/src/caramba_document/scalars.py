"""What an unquoted word of YAML 1.2 means (core schema, https://yaml.org/spec/1.2.2/#103-core-schema).

Only ``true`` and ``false`` are truth values (``yes``, ``no``, ``on``, ``off`` are strings), ``010`` is ten, ``1e-4``
is a number, and dates or ``1_000`` are strings.
"""

from __future__ import annotations

import math
import re
from typing import Final

__all__ = ["MAX_INTEGER", "BadScalarError", "resolve_scalar"]

MAX_INTEGER: Final = 2**63 - 1
"""Integers of a manifest fit in 64 bits."""

_WORDS: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER: Final = re.compile(r"[-+]?[0-9]+\Z")
_OTHER_BASE: Final = re.compile(r"0o[0-7]+\Z|0x[0-9a-fA-F]+\Z")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_SPECIAL: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z")
_NUMERIC_START: Final = frozenset("+-.0123456789")


class BadScalarError(ValueError):
    """A word that looks like a value which cannot be held."""


def resolve_scalar(text: str) -> bool | int | float | str | None:
    """The value of an unquoted word; raises :class:`BadScalarError` for numbers beyond 64 bits."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in _NUMERIC_START:
        return text
    if _INTEGER.match(text):
        return _bounded(text, 10)
    if _OTHER_BASE.match(text):
        return _bounded(text[2:], 8 if text[1] == "o" else 16)
    if _FLOAT.match(text):
        number = float(text)
        if math.isinf(number):
            raise BadScalarError(f"{text} is too large for a number")
        return number
    if _SPECIAL.match(text):
        return float(text.replace(".", "", 1))
    return text


def _bounded(digits: str, base: int) -> int:
    sign = -1 if digits[0] == "-" else 1
    digits = digits.lstrip("+-").lstrip("0") or "0"
    if len(digits) > 22:  # 64 bits in octal, before int() works on thousands of digits
        raise BadScalarError(f"an integer of {len(digits)} digits is too large")
    number = sign * int(digits, base)
    if abs(number) > MAX_INTEGER:
        raise BadScalarError(f"the integer {number} is too large")
    return number
