"""Single fields with a value of their own in each repetition of a group."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import attrs

from caramba_core.component import Layer, Topology
from caramba_core.errors import InvalidValue
from caramba_core.graph import Names

__all__ = ["spread"]


def spread(layers: Sequence[Layer], values: Mapping[str, Any]) -> tuple[Layer, ...]:
    """The layers with the fields at ``NODE.FIELD`` set to ``values``.

    Nodes are named as in the graph: by their own name or their role, a second of one role by its number; a topology
    that adds no name of its own leaves its layers where it stands.  Raises :class:`InvalidValue` of the field ``each``.
    """
    changed = tuple(layers)
    for path, value in values.items():
        changed = _in_scope(changed, path.split("."), value, path)
    return changed


def _in_scope(layers: tuple[Layer, ...], parts: Sequence[str], value: Any, path: str) -> tuple[Layer, ...]:
    if len(parts) < 2 or not all(parts):
        raise InvalidValue("each", f"{path!r} does not name a field", expected="NODE.FIELD, such as attention.window")
    found: list[str] = []
    changed = _change(layers, parts, value, path, Names(layers), found)
    if parts[0] not in found:
        raise InvalidValue("each", f"{path}: no node {parts[0]!r} in a repetition", expected=", ".join(found))
    return changed


def _change(
    layers: tuple[Layer, ...], parts: Sequence[str], value: Any, path: str, names: Names, found: list[str]
) -> tuple[Layer, ...]:
    """The layers with the node ``parts[0]`` changed where it is among them; ``found`` collects the names met."""
    result: list[Layer] = []
    for layer in layers:
        changed = layer
        inline = isinstance(layer, Topology) and layer.inline is not None
        if inline and layer.name is None:
            changed = _with_layers(layer, _change(_layers(layer), parts, value, path, names, found))
        else:
            found.append(names.give(layer))
            if found[-1] == parts[0]:
                if inline:
                    changed = _with_layers(layer, _in_scope(_layers(layer), parts[1:], value, path))
                else:
                    changed = _set(layer, parts[1:], value, path)
        result.append(changed)
    return tuple(result)


def _layers(topology: Layer) -> tuple[Layer, ...]:
    assert isinstance(topology, Topology)
    (body,) = topology.bodies()
    return tuple(body.layers)


def _with_layers(topology: Layer, layers: tuple[Layer, ...]) -> Layer:
    return topology if layers == _layers(topology) else attrs.evolve(cast(Any, topology), layers=layers)


def _set(config: Any, parts: Sequence[str], value: Any, path: str) -> Any:
    """``config`` with the field at ``parts`` set, its rules checked anew."""
    field = parts[0]
    known = [attribute.name for attribute in attrs.fields(type(config)) if attribute.name != "name"]
    if field not in known:
        raise InvalidValue("each", f"{path}: no field {field!r}", expected=", ".join(known))
    if len(parts) > 1:
        inner = getattr(config, field)
        if not attrs.has(type(inner)):
            raise InvalidValue("each", f"{path}: {field!r} has no fields of its own here")
        value = _set(inner, parts[1:], value, path)
    else:
        annotation = _annotations(cast(Hashable, type(config)))[field]
        if not _fits(value, annotation):
            raise InvalidValue("each", f"{path}: {value!r} does not fit", expected=_words(annotation))
    try:
        return attrs.evolve(config, **{field: value})
    except InvalidValue as error:
        raise InvalidValue("each", f"{path}: {error}", expected=error.expected, hint=error.hint) from error


@cache
def _annotations(config: Any) -> Mapping[str, Any]:
    return get_type_hints(config)


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value is of the annotated type; an int is a float, nothing else converts."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(annotation))
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in get_args(annotation))
    if annotation is float:
        return type(value) in (int, float) and math.isfinite(value)
    return annotation in (int, bool, str, NoneType) and type(value) is annotation


def _words(annotation: Any) -> str:
    if get_origin(annotation) in (Union, UnionType, Literal):
        return " or ".join(_words(option) for option in get_args(annotation))
    if not isinstance(annotation, type):
        return repr(annotation)
    return "null" if annotation is NoneType else annotation.__name__
