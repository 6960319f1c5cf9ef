"""JSON Schema (2020-12) of manifests with the installed plugins, for editors and for programs that write manifests.

It says of a manifest's file what can be said without reading it as caramba does: keys, types, ranges, choices, and the
fields of the component that a ``type:`` names.  Rules between fields, widths and variables are the reader's.

Wherever a value is expected, a string with ``${...}`` may stand.  A manifest, a group or a mapping that takes over
another one (``extends:``, ``include:``) may leave out what that one gives; the parts of such a manifest are checked
against definitions whose names end in ``.partial``, which require nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args, get_origin

import attrs

from caramba_core import __version__
from caramba_core.components import Layer, Model
from caramba_core.errors import PluginError
from caramba_core.manifest.schema import Group, Manifest
from caramba_core.manifest.values import is_list, is_literal, is_mapping, kinds_of, members, settings_of
from caramba_core.plugins.metadata import ComponentEntry
from caramba_core.plugins.registry import Registry
from caramba_plugins_tools.fields import COMPOSITION, INCLUDE, doc_text, fields_of, is_config

__all__ = ["manifest_schema"]

Schema = dict[str, Any]

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_PLAIN: Final[dict[Any, Schema]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    Path: {"type": "string"},
    type(None): {"type": "null"},
    Any: {},
    object: {},
}
_FORMS: Final[dict[str, Schema]] = {
    "text": {"type": "string"},
    "text | list of text": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    "mapping": {"type": ["object", "null"]},
}
"""What the keys of composition hold, by the words of their type."""
_LIMITS: Final = {"minimum": "minimum", "maximum": "maximum", "above": "exclusiveMinimum", "below": "exclusiveMaximum"}
_VARIABLE: Final[Schema] = {"$ref": "#/$defs/variable"}
_LAID_OVER: Final[Schema] = {"type": "object", "anyOf": [{"required": ["extends"]}, {"required": ["include"]}]}
"""A manifest or group that takes keys over from another one."""


def manifest_schema(registry: Registry) -> Schema:
    """The schema with all components that load; those that do not are named in its ``$comment``."""
    defs: dict[str, Schema] = {
        "variable": {
            "type": "string",
            "pattern": r"\$\{",
            "description": "a value with ${...}: a variable, or arithmetic on integers",
        }
    }
    broken: set[str] = set()
    loose = _Writer(registry, defs, broken)
    whole = _Writer(registry, defs, broken, loose)
    root = {"if": _LAID_OVER, "then": loose.manifest(), "else": whole.manifest()}
    plugins = ", ".join(f"{plugin.name} {plugin.version}" for plugin in registry.usable())
    comment = f"made by caramba {__version__} with {plugins}"
    if broken:
        comment += f"; left out, because they do not load: {', '.join(sorted(broken))}"
    return {
        "$schema": _DIALECT,
        "$comment": comment,
        "title": "caramba manifest",
        "type": "object",
        **root,
        "$defs": dict(sorted(defs.items())),
    }


class _Writer:
    """Writes definitions; one without a ``loose`` writer is that writer itself, and requires no key."""

    def __init__(
        self, registry: Registry, defs: dict[str, Schema], broken: set[str], loose: _Writer | None = None
    ) -> None:
        self._registry = registry
        self._defs = defs
        self._broken = broken
        self._loose = loose or self
        self._suffix = ".partial" if loose is None else ""

    # ------------------------------------------------------------------------------------------------ the frame

    def manifest(self) -> Schema:
        """A manifest: the typed one, with what reading resolves."""
        groups = {"type": "array", "items": self._group()}
        return self._define("manifest", lambda: self._object(Manifest, {"model": self._model(), "groups": groups}))

    def _group(self) -> Schema:
        """A group; one that extends another, or is laid over another manifest's, may leave out what that one gives."""
        group = self._define("group", lambda: self._object(Group, {"model": self._loose._model()}))
        return group if self._loose is self else {"if": _LAID_OVER, "then": self._loose._group(), "else": group}

    def _model(self) -> Schema:
        """A model spelled out, or taken from the group's teacher with some layers replaced."""
        loose = self._loose
        replace = {"type": "object", "additionalProperties": loose._of(Layer, {})}
        origins = {"enum": sorted(self._names(("origin",)))}
        taken = loose._define("model.taken", lambda: loose._object(Model, {"from": origins, "replace": replace}))
        return {"if": {"type": "object", "required": ["from"]}, "then": taken, "else": self._class(Model)}

    def _object(self, cls: type, given: Mapping[str, Schema] | None = None, *, tag: str | None = None) -> Schema:
        """The mapping that a config class is written as, in which nothing is required that ``include:`` may give.

        ``given`` are schemas of single keys; with them come the keys of composition.  ``tag`` is the key of a
        component's name.
        """
        fields = {field.name: field for field in fields_of(cls)}
        composed = COMPOSITION[cls] if given else ()
        properties: dict[str, Schema] = {} if tag is None else {tag: {}}
        required: list[str] = []
        for key, (attribute, type_) in settings_of(cls).items():
            if key == tag or any(field.name == key for field in composed):
                continue
            default = attribute.default
            schema = given[key] if given and key in given else self._of(type_, attribute.metadata)
            if default is attrs.NOTHING:
                required.append(key)
            if _is_json(default):
                schema = {**schema, "default": list(default) if isinstance(default, tuple) else default}
            properties[key] = {"description": fields[key].described, **schema}
        for field in (*composed, INCLUDE):
            schema = given[field.name] if given and field.name in given else _FORMS[field.type]
            properties[field.name] = {"description": field.described, **schema}
        whole: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
        if words := doc_text(cls).partition("\n")[0]:
            whole["description"] = words
        if required and self._loose is not self:
            whole["anyOf"] = [{"required": required}, {"required": ["include"]}]
        return whole

    # ------------------------------------------------------------------------------------------------ types

    def _of(self, type_: Any, rules: Mapping[str, Any]) -> Schema:
        """The schema of a value of a type, under a field's rules."""
        once: list[Schema] = []
        for member in members(type_):
            option = self._bare(member, rules)
            if option not in once:
                once.append(option)
        return _or_variable(*once)

    def _bare(self, type_: Any, rules: Mapping[str, Any]) -> Schema:
        if kinds_of(type_):
            return self._union(type_)
        if is_literal(type_):
            return {"enum": list(get_args(type_))}
        if type_ in _PLAIN:
            return {**_PLAIN[type_], **_limits(type_, rules)}
        if is_list(type_):
            return self._list(type_)
        if is_mapping(type_):
            value = (*get_args(type_), Any, Any)[1]
            return {"type": "object", "additionalProperties": self._of(value, {})}
        if attrs.has(type_):
            return self._class(type_)
        raise PluginError(f"a config has a field of type {type_}, which a manifest cannot hold")

    def _list(self, type_: Any) -> Schema:
        arguments = get_args(type_) or (Any, ...)
        if get_origin(type_) is tuple and arguments[-1] is not ...:
            items = [self._of(argument, {}) for argument in arguments]
            return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
        return {"type": "array", "items": self._of(arguments[0], {})}

    def _class(self, cls: type) -> Schema:
        """A config that is no component: its fields alone."""
        return self._define(f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}", lambda: self._object(cls))

    def _define(self, name: str, make: Callable[[], Schema]) -> Schema:
        """A reference to a definition, which is made once and may hold itself."""
        name += self._suffix
        if name not in self._defs:
            self._defs[name] = {}
            self._defs[name] = make()
        pointer = name.replace("~", "~0").replace("/", "~1").replace("%", "%25")
        return {"$ref": f"#/$defs/{pointer}"}

    # ------------------------------------------------------------------------------------------------ components

    def _union(self, base: Any) -> Schema:
        """Any component of a base class's kinds: a mapping with its tag, or its bare name where that is enough."""
        return self._define(base.__name__.lower(), lambda: self._components(base, kinds_of(base)))

    def _components(self, base: Any, kinds: tuple[str, ...]) -> Schema:
        bare: list[str] = []
        tag = base.tag
        cases: dict[str, Schema] = {}
        for written, entry in sorted(self._names(kinds).items()):
            config = self._config(entry, base)
            if config is None:
                self._broken.add(entry.qualified)
                continue
            if not any(field.required and field.name != tag and "." not in field.name for field in fields_of(config)):
                bare.append(written)
            cases[written] = self._define(f"{entry.kind}.{entry.qualified}", partial(self._object, config, tag=tag))
        mapping: Schema = {
            "type": "object",
            "properties": {tag: {"anyOf": [{"enum": list(cases)}, _VARIABLE]}},
            "required": [tag],
            "allOf": [
                {"if": {"properties": {tag: {"const": written}}, "required": [tag]}, "then": case}
                for written, case in cases.items()
            ],
        }
        untyped: Schema = {"not": {"required": [tag]}} if self._loose is self else {"required": ["include"]}
        short: list[Schema] = [{"enum": bare}] if bare else []
        suffixes = [re.escape(suffix) for kind in kinds for suffix in self._registry.suffixes(kind)]
        if suffixes:
            short.append({"type": "string", "pattern": f"({'|'.join(suffixes)})$"})
        return {
            "description": f"{' or '.join(kinds)}: a mapping with {tag}:{', or a name alone' if short else ''}",
            "anyOf": [mapping, {"type": "object", **untyped}, *short],
        }

    def _names(self, kinds: tuple[str, ...]) -> dict[str, ComponentEntry]:
        """What components can be called: the short name where it is not claimed twice, the qualified one always."""
        entries = [entry for kind in kinds for entry in self._registry.entries(kind)]
        short = [entry.name for entry in entries]
        names = {entry.name: entry for entry in entries if short.count(entry.name) == 1}
        return names | {entry.qualified: entry for entry in entries}

    def _config(self, entry: ComponentEntry, base: type) -> type | None:
        """The config class of a component; none where it does not load."""
        try:
            found = self._registry.load(entry)
        except PluginError:
            return None
        return found if is_config(found) and issubclass(found, base) else None


def _or_variable(*options: Schema) -> Schema:
    """Any of the options, or a string with ``${...}``."""
    if any(option in ({}, {"type": "string"}) for option in options):
        return options[0] if len(options) == 1 else {"anyOf": list(options)}
    return {"anyOf": [*options, _VARIABLE]}


def _limits(type_: Any, rules: Mapping[str, Any]) -> Schema:
    """A field's range, choices and pattern in the words of JSON Schema."""
    limits: Schema = {}
    if type_ in (int, float):
        limits = {word: rules[rule] for rule, word in _LIMITS.items() if rules.get(rule) is not None}
    if type_ is not type(None) and rules.get("choices") is not None:
        limits["enum"] = list(rules["choices"])
    if type_ is str and rules.get("pattern") is not None:
        pattern = rules["pattern"]
        limits["pattern"] = f"^(?:{getattr(pattern, 'pattern', pattern)})$"
    return limits


def _is_json(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_json, value))
    return value is None or isinstance(value, bool | int | float | str)
