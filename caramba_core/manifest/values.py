"""Which settings a config takes, and which values their types take: nothing is converted, nothing is guessed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path as FilePath
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import attrs
from caramba_document.problem import Fault, key_of, shown
from caramba_document.suggestions import article, nearest, suggestion
from caramba_document.tree import GAP

from caramba_core.components import Component, Layer
from caramba_core.errors import Faults, PluginError
from caramba_core.kinds import LAYER_KINDS

__all__ = ["PLAIN", "is_list", "is_literal", "is_mapping", "kinds_of", "literal", "members", "misfit"]
__all__ += ["settings_of", "words"]


def misfit(value: object, expected: str, *, hint: str | None = None) -> Faults:
    """A value of the wrong kind; nothing is said about a gap, whose reason is reported already."""
    if value is GAP:
        return Faults()
    found = shown(value)
    return Faults(Fault(message=f"expected {expected}, found {found}", found=found, expected=expected, hint=hint))


# ------------------------------------------------------------------------------------------------ plain values


_TRUE: Final = ("true", "yes", "on", "y", "1")
_FALSE: Final = ("false", "no", "off", "n", "0")


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower() if type(value) in (str, int) else ""
    hint = "write true" if text in _TRUE else "write false" if text in _FALSE else None
    raise misfit(value, "true or false", hint=hint)


def _integer(value: Any) -> int:
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


def _number(value: Any) -> float:
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return float(value)
    if isinstance(value, float):
        raise misfit(value, "a finite number")
    try:
        number = float(value) if isinstance(value, str) else math.nan
    except ValueError:
        number = math.nan
    hint = f"write {number!r}, without quotes or separators" if math.isfinite(number) else None
    raise misfit(value, "a number", hint=hint)


def _string(value: Any) -> str:
    if isinstance(value, str):
        return value
    scalar = isinstance(value, bool | int | float)
    text = str(value).lower() if isinstance(value, bool) else str(value) if scalar and abs(value) < 10**30 else None
    raise misfit(value, "a string", hint=f'quote it: "{text}"' if text is not None else None)


def _null(value: Any) -> None:
    if value is not None:
        raise misfit(value, "null")


def _anything(value: Any) -> Any:
    if _holds_gap(value):
        raise Faults
    return value


def _holds_gap(value: Any) -> bool:
    if isinstance(value, list | dict):
        return any(map(_holds_gap, value.values() if isinstance(value, dict) else value))
    return value is GAP


PLAIN: Final[dict[Any, tuple[str, Callable[[Any], Any]]]] = {
    bool: ("true or false", _boolean),
    int: ("an integer", _integer),
    float: ("a number", _number),
    str: ("a string", _string),
    FilePath: ("a file name", lambda value: FilePath(_string(value))),
    NoneType: ("null", _null),
    Any: ("a value", _anything),
    object: ("a value", _anything),
}
"""Each plain type in words, and what makes its value or raises :class:`~caramba_core.errors.Faults`."""


def literal(value: Any, type_: Any) -> Any:
    """The value of a ``Literal[...]``: one of its choices, of the same type."""
    choices = get_args(type_)
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
    if isinstance(value, str) and (near := nearest(value, filter(lambda choice: isinstance(choice, str), choices))):
        message = f"{value!r} is no choice here{suggestion(near)}"
        raise Faults(Fault(message=message, found=shown(value), expected=words(type_)))
    as_text = [choice for choice in choices if str(choice) == str(value)]
    raise misfit(value, words(type_), hint=f"write {as_text[0]!r}" if as_text else None)


# ------------------------------------------------------------------------------------------------ settings and types


@cache
def settings_of(cls: Any) -> dict[str, tuple[attrs.Attribute[Any], Any]]:
    """The fields of a config class by their keys in a manifest, each with its type."""
    try:
        types = get_type_hints(cls)
    except NameError as error:
        raise PluginError(
            f"a field of {cls.__module__}.{cls.__qualname__} has a type that cannot be found: {error}",
            hint="types of fields must be imported where the config is defined, not only for type checking",
        ) from None
    return {key_of(field.name): (field, types[field.name]) for field in attrs.fields(cls) if field.init}


def is_literal(type_: Any) -> bool:
    """``Literal[...]``."""
    return get_origin(type_) is Literal


def is_list(type_: Any) -> bool:
    """``tuple``, ``list`` or ``Sequence``, with or without the type of their items."""
    return (get_origin(type_) or type_) in (tuple, list, Sequence)


def is_mapping(type_: Any) -> bool:
    """``Mapping`` or ``dict``."""
    return (get_origin(type_) or type_) in (dict, Mapping)


def members(type_: Any) -> tuple[Any, ...]:
    """The alternatives of a union; the type alone if it is none."""
    return get_args(type_) if get_origin(type_) in (Union, UnionType) else (type_,)


def kinds_of(type_: Any) -> tuple[str, ...]:
    """The kinds whose components may stand where a field has this type; none where it is not the base of a kind."""
    if not (isinstance(type_, type) and issubclass(type_, Component) and "kind" in vars(type_)):
        return ()
    return LAYER_KINDS if type_ is Layer else (type_.kind,)


def words(type_: Any) -> str:
    """What a type is to a user: ``an integer``, ``an attention``, ``'auto' or 'cpu'``."""
    if type_ in PLAIN:
        return PLAIN[type_][0]
    if is_literal(type_):
        return " or ".join(map(repr, get_args(type_)))
    if len(members(type_)) > 1:
        return " or ".join(map(words, members(type_)))
    if kinds := kinds_of(type_):
        return article(" or ".join(kinds))
    return "a list" if is_list(type_) else "a mapping"
