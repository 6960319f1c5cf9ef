"""Strict hooks for plain values: nothing is converted, nothing is guessed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path as FilePath
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeAlias, Union, get_args, get_origin

from caramba_core.document.faults import Fault, Faults
from caramba_core.document.problem import shown
from caramba_core.document.tree import GAP

__all__ = ["PLAIN", "Hook", "is_list", "is_literal", "is_mapping", "is_union", "literal", "members", "misfit", "words"]

Hook: TypeAlias = Callable[[Any, Any], Any]
"""What cattrs calls: ``(value, type) -> object``."""


def misfit(value: object, expected: str, *, hint: str | None = None) -> Faults:
    """A value of the wrong kind; nothing is said about a gap, whose reason is reported already."""
    if value is GAP:
        return Faults()
    found = shown(value)
    return Faults((Fault(message=f"expected {expected}, found {found}", found=found, expected=expected, hint=hint),))


def _boolean(value: Any, _: Any) -> bool:
    if isinstance(value, bool):
        return value
    hint = None
    if isinstance(value, str) and value.lower() in ("yes", "no", "on", "off", "true", "false", "y", "n"):
        right = "true" if value.lower() in ("yes", "on", "true", "y") else "false"
        hint = f"write {right}"
    elif type(value) is int and value in (0, 1):
        hint = f"write {'true' if value else 'false'}"
    raise misfit(value, "true or false", hint=hint)


def _integer(value: Any, _: Any) -> int:
    if type(value) is int:
        return value
    hint = None
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        hint = f"write {int(value)}"
    elif isinstance(value, str):
        digits = value.replace("_", "").replace(",", "").strip()
        if digits.removeprefix("-").isdecimal() and len(digits) < 20:
            hint = f"write {int(digits)}, without quotes or separators"
    raise misfit(value, "an integer", hint=hint)


def _number(value: Any, _: Any) -> float:
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return float(value)
    if isinstance(value, float):
        raise misfit(value, "a finite number")
    hint = None
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            pass
        else:
            hint = f"write {number!r}, without quotes or separators" if math.isfinite(number) else None
    raise misfit(value, "a number", hint=hint)


def _string(value: Any, _: Any) -> str:
    if isinstance(value, str):
        return value
    scalar = isinstance(value, bool | int | float)
    text = str(value).lower() if isinstance(value, bool) else str(value) if scalar and abs(value) < 10**30 else None
    raise misfit(value, "a string", hint=f'quote it: "{text}"' if text is not None else None)


def _path(value: Any, _: Any) -> FilePath:
    return FilePath(_string(value, str))


def _null(value: Any, _: Any) -> None:
    if value is not None:
        raise misfit(value, "null")


def _anything(value: Any, _: Any) -> Any:
    if _holds_gap(value):
        raise Faults
    return value


def _holds_gap(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_holds_gap, value))
    if isinstance(value, dict):
        return any(map(_holds_gap, value.values()))
    return value is GAP


PLAIN: Final[dict[Any, Hook]] = {
    bool: _boolean,
    int: _integer,
    float: _number,
    str: _string,
    FilePath: _path,
    NoneType: _null,
    Any: _anything,
    object: _anything,
}
"""The hook of each plain type."""


def literal(type_: Any) -> Hook:
    """The hook of ``Literal[...]``: one of its values, of the same type."""
    from caramba_core.suggestions import nearest, suggestion

    choices = get_args(type_)
    expected = words(type_)

    def structure(value: Any, _: Any) -> Any:
        for choice in choices:
            if type(value) is type(choice) and value == choice:
                return choice
        if isinstance(value, str):
            near = nearest(value, [choice for choice in choices if isinstance(choice, str)])
            if near:
                found = shown(value)
                message = f"{value!r} is no choice here{suggestion(near)}"
                raise Faults((Fault(message=message, found=found, expected=expected),))
        as_text = [choice for choice in choices if str(choice) == str(value)]
        raise misfit(value, expected, hint=f"write {as_text[0]!r}" if as_text else None)

    return structure


# ------------------------------------------------------------------------------------------------ kinds of annotation


def is_literal(type_: Any) -> bool:
    """``Literal[...]``."""
    return get_origin(type_) is Literal


def is_union(type_: Any) -> bool:
    """``A | B``."""
    return get_origin(type_) in (Union, UnionType)


def is_list(type_: Any) -> bool:
    """``tuple``, ``list`` or ``Sequence``, with or without the type of their items."""
    return (get_origin(type_) or type_) in (tuple, list, Sequence)


def is_mapping(type_: Any) -> bool:
    """``Mapping`` or ``dict``."""
    return (get_origin(type_) or type_) in (dict, Mapping)


def members(type_: Any) -> tuple[Any, ...]:
    """The alternatives of a union; the type alone if it is none."""
    return get_args(type_) if is_union(type_) else (type_,)


_WORDS: Final[dict[Any, str]] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    FilePath: "a file name",
    NoneType: "null",
    Any: "a value",
    object: "a value",
}


def words(type_: Any) -> str:
    """What a type is to a user: ``an integer``, ``a list of strings``, ``'auto' or 'cpu'``."""
    if type_ in _WORDS:
        return _WORDS[type_]
    if get_origin(type_) is Annotated:
        return words(get_args(type_)[0])
    if is_literal(type_):
        return " or ".join(str(choice) if not isinstance(choice, str) else repr(choice) for choice in get_args(type_))
    if is_union(type_):
        return " or ".join(words(member) for member in get_args(type_))
    if is_list(type_):
        return "a list"
    return "a mapping"
