"""Configs: light, documented, and clear about what they refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import attrs

from caramba_core.components import evolve
from caramba_core.errors import InvalidValue
from caramba_plugins_testing.case import Case, CheckFailed, check, require
from caramba_plugins_testing.interpreter import heavy_imports

__all__ = ["bad_configs", "documented", "light"]


@check("the config's module imports neither torch nor numpy")
def light(case: Case) -> None:
    """Plans, listings and schemas import configs; a fresh interpreter tells what comes with them."""
    module = type(case.config).__module__
    heavy = heavy_imports(f"import {module}", what=f"importing {module}")
    require(
        not heavy, f"importing {module} imports {heavy}; put the torch module into another file and name it in builds"
    )


@check("the config and each of its fields say what they are")
def documented(case: Case) -> None:
    """``caramba explain`` and the JSON Schema show these texts."""
    config: type[Any] = type(case.config)
    require((config.__doc__ or "").strip(), f"{config.__name__} has no docstring")
    for field in attrs.fields(config):
        helped = str(field.metadata.get("help", "")).strip()
        require(helped, f"the field {field.name} has no help; declare it with option(help=...)")


@check("bad settings are refused by name")
def bad_configs(case: Case) -> None:
    """The declared ranges, and the changes and widths that the case calls bad."""
    for changes in (*_out_of_range(case), *case.bad):
        _refuse(case, changes, case.width)
    for width in case.bad_widths:
        _refuse(case, {}, width)


def _out_of_range(case: Case) -> list[Mapping[str, Any]]:
    """For each field with a range, a value outside of it."""
    changes: list[Mapping[str, Any]] = []
    for field in attrs.fields(cast("type[Any]", type(case.config))):
        rules = field.metadata
        for rule, step in (("minimum", -1), ("above", 0), ("maximum", 1), ("below", 0)):
            if rules.get(rule) is not None:
                changes.append({field.name: rules[rule] + step})
        if rules.get("choices"):
            changes.append({field.name: "no such choice"})
    return changes


def _refuse(case: Case, changes: Mapping[str, Any], width: int) -> None:
    words = ", ".join(f"{name}={value!r}" for name, value in changes.items()) or f"an input width of {width}"
    try:
        evolve(case.config, **changes).check(width)
    except InvalidValue as error:
        named = error.message.strip() and (not changes or error.field is None or error.field in changes)
        require(named, f"{words} is refused, but the message blames {error.field!r}: {error}")
        return
    except Exception as error:
        said = f"{words} raises {type(error).__name__}, which points at no field; raise InvalidValue instead"
        raise CheckFailed(said) from error
    raise CheckFailed(f"{words} is accepted; raise InvalidValue in __attrs_post_init__ or check(width)")
