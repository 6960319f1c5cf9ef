"""Single fields with a value of their own in each repetition of a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import attrs

from caramba_core.components import Layer, Topology
from caramba_core.errors import Faults, InvalidValue
from caramba_core.graph import Names
from caramba_core.manifest.structure import Structurer
from caramba_core.manifest.values import settings_of, words
from caramba_core.plugins.registry import registry

__all__ = ["spread"]


def spread(layers: Sequence[Layer], values: Mapping[str, Any]) -> tuple[Layer, ...]:
    """The layers with the fields at ``NODE.FIELD`` set to ``values``.

    Nodes are named as in the graph: by their own name or their role, a second of one role by its number; a topology
    that adds no name of its own leaves its layers where it stands.  A field that a node does not have may be given
    ``None``, which says nothing.  Raises :class:`InvalidValue` of the field ``each``.
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
    if field not in known and value is None:
        return config
    if field not in known:
        raise InvalidValue("each", f"{path}: no field {field!r}", expected=", ".join(known))
    if len(parts) > 1:
        inner = getattr(config, field)
        if not attrs.has(type(inner)):
            raise InvalidValue("each", f"{path}: {field!r} has no fields of its own here")
        value = _set(inner, parts[1:], value, path)
    else:
        _, type_ = settings_of(cast(Any, type(config)))[field]
        try:
            value = Structurer(registry()).structure(value, type_)
        except Faults as error:
            hint = next((fault.message for fault in error.faults if isinstance(value, dict)), None)
            raise InvalidValue("each", f"{path}: {value!r} does not fit", expected=words(type_), hint=hint) from None
    try:
        return attrs.evolve(config, **{field: value})
    except InvalidValue as error:
        raise InvalidValue("each", f"{path}: {error}", expected=error.expected, hint=error.hint) from error
