"""Writing what was chosen for each layer into a manifest that reads like any other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import attrs
from caramba_document.problem import key_of

from caramba_core.components import Attention, Component
from caramba_core.errors import InputError, PluginError
from caramba_core.plugins.registry import registry

__all__ = ["set_attentions", "written"]


def written(config: Any) -> Any:
    """A config in the words of a manifest: a component's ``type``, and the fields that are not at their default."""
    fields = {}
    for field in attrs.fields(cast(Any, type(config))):
        value, default = getattr(config, field.name), field.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            default = default.factory(*([config] if default.takes_self else []))
        if value != default:
            fields[key_of(field.name)] = written(value) if attrs.has(type(value)) else value
    if not isinstance(config, Component):
        return fields
    if "cache" in fields:  # what every attention may have, behind what it must have
        fields["cache"] = fields.pop("cache")
    name = registry().name_of(type(config))
    return {type(config).tag: name, **fields} if fields or isinstance(config, Attention) else name


def set_attentions(document: dict[str, Any], run: str, chosen: Mapping[str, Attention], own: Attention) -> None:
    """Leave the allocating run out of a manifest, and give its repeated blocks the attention chosen for each.

    ``own`` is the manifest's attention.  Attentions of other types become ``variants``; fields that vary within a type
    go into ``each``.  Raises :class:`InputError` where the attentions do not stand in one repeated block.
    """
    (group,) = document["groups"]
    group["runs"] = [each for each in group["runs"] if each["id"] != run]
    configs, role = list(chosen.values()), next(iter(chosen)).rpartition(".")[2]
    types = list(dict.fromkeys(map(type, configs)))
    holders = [
        holder
        for holder in _repeated(document["model"], len(configs))
        if _attention(holder["layers"]) is not None and not (len(types) > 1 and "variants" in holder)
    ]
    if not holders:
        raise InputError(
            "the choices cannot be written: the attentions do not stand in one repeated block without variants",
            hint=f"they stand in allocation.json: {len(configs)} layers",
        )
    varying = [name for type_ in types for name in _varying([one for one in configs if type(one) is type_])]
    for holder in holders:
        each = dict(holder.pop("each", {}))
        paths = [path for path in each if path.startswith(f"{role}.")]
        paths += [path for name in dict.fromkeys(varying) if (path := f"{role}.{name}") not in each]
        each.update({path: [_value(one, path.split(".")[1:]) for one in configs] for path in paths})
        bodies = [_with(holder["layers"], next(one for one in configs if type(one) is t), own, varying) for t in types]
        holder["layers"] = bodies[0]
        if each:
            holder["each"] = each
        if len(bodies) > 1:
            holder.update(variants=bodies[1:], order=[types.index(type(one)) for one in configs])


def _varying(configs: Sequence[Attention]) -> list[str]:
    """Fields in which attentions of one type differ."""
    fields = (field.name for field in attrs.fields(cast(Any, type(configs[0]))))
    return [name for name in fields if any(getattr(one, name) != getattr(configs[0], name) for one in configs)]


def _value(config: Any, path: Sequence[str]) -> Any:
    """The field at a path in the words of a manifest; ``None`` where there is no such field."""
    for name in path:
        config = getattr(config, name, None)
    return written(config) if attrs.has(type(config)) else config


def _with(layers: Any, config: Attention, own: Attention, varying: Sequence[str]) -> Any:
    """Layers with another attention in the place of ``own``; fields that vary by layer are written elsewhere."""
    layers = deepcopy(layers)
    here = _attention(layers)
    assert here is not None
    if type(config) is not type(own):
        here.clear()
        here.update(written(config))
        own = config
    for name in _varying([own, config]):
        if name not in varying:
            here[name] = _value(config, [name])
    return layers


def _attention(node: Any) -> dict[str, Any] | None:
    """The first mapping in ``node`` that describes an attention."""
    if isinstance(node, dict) and isinstance(node.get("type"), str):
        try:
            registry().find(["attention"], node["type"])
        except PluginError:
            pass
        else:
            return node
    inside = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return next((found for item in inside if (found := _attention(item)) is not None), None)


def _repeated(node: Any, count: int) -> Iterator[dict[str, Any]]:
    """Every mapping in ``node`` that repeats its layers ``count`` times."""
    if isinstance(node, dict):
        if node.get("repeat") == count:
            yield node
        node = list(node.values())
    for item in node if isinstance(node, list) else ():
        yield from _repeated(item, count)
