"""JSON Schema (2020-12) of manifests with the installed plugins, for editors and for programs that write manifests.

It says of a manifest's file what can be said without reading it as caramba does: keys, types, ranges, choices, and the
fields of the component that a ``type:`` names.  Rules between fields, widths and variables are the reader's.

Wherever a value is expected, a string with ``${...}`` may stand.  A manifest, a group or a mapping that takes over
another one (``extends:``, ``include:``) may leave out what that one gives; the parts of such a manifest are checked
against definitions whose names end in ``.partial``, which require nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, get_args, get_origin

import attrs

from caramba_core import __version__
from caramba_core.component import Layer
from caramba_core.errors import PluginError
from caramba_core.manifest.configs import kinds_of, shape_of
from caramba_core.manifest.schema import Group, Manifest
from caramba_core.manifest.values import is_list, is_literal, is_mapping, is_union, members
from caramba_core.model import Model
from caramba_core.plugins.metadata import ComponentEntry
from caramba_core.plugins.registry import Registry

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
_VARIABLE: Final[Schema] = {"$ref": "#/$defs/variable"}
_NAMES: Final[Schema] = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


def manifest_schema(registry: Registry) -> Schema:
    """The schema with all components that load; those that do not are named in its ``$comment``."""
    return _Writer(registry).manifest()


class _Writer:
    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._defs: dict[str, Schema] = {}
        self._broken: dict[str, str] = {}

    def manifest(self) -> Schema:
        """The whole schema."""
        self._defs["variable"] = {
            "type": "string",
            "pattern": r"\$\{",
            "description": "a value with ${...}: a variable, or arithmetic on integers",
        }
        whole = self._root(partial=False)
        extended = self._root(partial=True)
        plugins = ", ".join(f"{plugin.name} {plugin.version}" for plugin in self._registry.usable())
        comment = f"made by caramba {__version__} with {plugins}"
        if self._broken:
            comment += f"; left out, because they do not load: {', '.join(sorted(self._broken))}"
        return {
            "$schema": _DIALECT,
            "$comment": comment,
            "title": "caramba manifest",
            "type": "object",
            "if": {"anyOf": [{"required": ["extends"]}, {"required": ["include"]}]},
            "then": {"$ref": self._define("manifest.partial", extended)},
            "else": {"$ref": self._define("manifest", whole)},
            "$defs": dict(sorted(self._defs.items())),
        }

    # ------------------------------------------------------------------------------------------------ the frame

    def _root(self, *, partial: bool) -> Schema:
        """A manifest: the typed one, with what reading resolves."""
        schema = self._fields(Manifest, partial=partial, resolved=("model", "groups"))
        schema["properties"] |= {
            "vars": _described({"type": ["object", "null"]}, "values that ${name} stands for"),
            "extends": _described(_NAMES, "manifests or presets that this one is laid on"),
            "model": _described(self._model(partial=partial), "the model"),
            "groups": _described({"type": "array", "items": self._group(partial=partial)}, "collections of runs"),
        }
        if not partial:
            schema["required"].append("model")
        return schema

    def _group(self, *, partial: bool) -> Schema:
        """A group; one that extends another, or is laid on another manifest's, may leave out what that one gives."""
        more = {
            "vars": _described({"type": ["object", "null"]}, "variables of this group, over the manifest's"),
            "extends": _described({"type": "string"}, "another group that this one is laid on"),
            "matrix": _described({"type": "object"}, "lists of values: one group for each combination"),
            "model": _described(self._model(partial=True), "what differs from the manifest's model in this group"),
        }
        schemas = []
        for loose in (False, True):
            schema = self._fields(Group, partial=loose, resolved=("model",))
            schema["properties"] |= more
            schemas.append(self._define("group.partial" if loose else "group", schema))
        if partial:
            return {"$ref": schemas[1]}
        taken_over = {"type": "object", "anyOf": [{"required": ["extends"]}, {"required": ["include"]}]}
        return {"if": taken_over, "then": {"$ref": schemas[1]}, "else": {"$ref": schemas[0]}}

    def _model(self, *, partial: bool) -> Schema:
        """A model spelled out, or taken from the group's teacher with some layers replaced."""
        taken = self._fields(Model, partial=True)
        taken["properties"] |= {
            "from": {"enum": sorted(self._names(("origin",))), "description": "what the model is taken from"},
            "replace": {
                "type": "object",
                "additionalProperties": self._of(Layer, {}, partial=True),
                "description": "PATTERN: LAYER; the layers that matching nodes get instead",
            },
        }
        spelled = self._class(Model, partial=partial)
        reference = {"$ref": self._define("model.taken", taken)}
        return {"if": {"type": "object", "required": ["from"]}, "then": reference, "else": spelled}

    def _fields(self, cls: type, *, partial: bool, resolved: Collection[str] = (), tag: str | None = None) -> Schema:
        """The object that a config class is written as, without what is ``resolved``; a component has a ``tag``."""
        properties: dict[str, Schema] = {} if tag is None else {tag: {}}
        required: list[str] = []
        for key, (attribute, type_) in shape_of(cls).fields.items():
            if key in resolved or key == tag:
                continue
            properties[key] = self._field(attribute, type_, partial=partial)
            if attribute.default is attrs.NOTHING and not partial:
                required.append(key)
        properties["include"] = _described(_NAMES, "manifests that this mapping is laid on")
        schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
        words = _first_line(cls)
        if words:
            schema["description"] = words
        schema["required"] = required
        return schema

    def _field(self, attribute: attrs.Attribute[Any], type_: Any, *, partial: bool) -> Schema:
        schema = self._of(type_, attribute.metadata, partial=partial)
        unit = attribute.metadata.get("unit")
        words = attribute.metadata.get("help")
        described = dict(schema)
        if words:
            described["description"] = f"{words} ({unit})" if unit else words
        if attribute.default is not attrs.NOTHING and _is_json(attribute.default):
            default = attribute.default
            described["default"] = list(default) if isinstance(default, tuple) else default
        return described

    # ------------------------------------------------------------------------------------------------ types

    def _of(self, type_: Any, rules: Mapping[str, Any], *, partial: bool) -> Schema:
        """The schema of a value of a type, under a field's rules."""
        if is_union(type_):
            options = [self._bare(member, rules, partial=partial) for member in members(type_)]
            return _or_variable(*_flat(options))
        return _or_variable(self._bare(type_, rules, partial=partial))

    def _bare(self, type_: Any, rules: Mapping[str, Any], *, partial: bool) -> Schema:
        if kinds_of(type_):
            return self._union(type_, partial=partial)
        if is_literal(type_):
            return {"enum": list(get_args(type_))}
        if type_ in _PLAIN:
            return {**_PLAIN[type_], **_limits(type_, rules)}
        if is_list(type_):
            return self._list(type_, partial=partial)
        if is_mapping(type_):
            value = (*get_args(type_), Any, Any)[1]
            return {"type": "object", "additionalProperties": self._of(value, {}, partial=partial)}
        if attrs.has(type_):
            return self._class(type_, partial=partial)
        raise PluginError(f"a config has a field of type {type_}, which a manifest cannot hold")

    def _list(self, type_: Any, *, partial: bool) -> Schema:
        arguments = get_args(type_) or (Any, ...)
        if get_origin(type_) is tuple and arguments[-1] is not ...:
            items = [self._of(argument, {}, partial=partial) for argument in arguments]
            return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
        return {"type": "array", "items": self._of(arguments[0], {}, partial=partial)}

    def _class(self, cls: type, *, partial: bool) -> Schema:
        """A config that is no component: its fields alone."""
        name = f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}" + (".partial" if partial else "")
        if name not in self._defs:
            self._defs[name] = {}  # a class may hold itself
            self._defs[name] = _unless_included(self._fields(cls, partial=partial))
        return {"$ref": f"#/$defs/{_pointer(name)}"}

    # ------------------------------------------------------------------------------------------------ components

    def _union(self, base: Any, *, partial: bool) -> Schema:
        """Any component of a base class's kinds: a mapping with its tag, or its bare name where that is enough."""
        kinds, tag = kinds_of(base), base.tag
        name = f"{base.__name__.lower()}" + (".partial" if partial else "")
        if name in self._defs:
            return {"$ref": f"#/$defs/{_pointer(name)}"}
        self._defs[name] = {}  # layers hold layers
        entries = self._names(kinds)
        bare: list[str] = []
        cases: list[Schema] = []
        for written, entry in sorted(entries.items()):
            reference, needs = self._component(entry, base, partial=partial)
            if reference is None:
                continue
            if not needs:
                bare.append(written)
            named = {"properties": {tag: {"const": written}}, "required": [tag]}
            cases.append({"if": named, "then": {"$ref": reference}})
        known = [case["if"]["properties"][tag]["const"] for case in cases]
        mapping: Schema = {
            "type": "object",
            "properties": {tag: {"anyOf": [{"enum": known}, _VARIABLE]}},
            "required": [tag],
            "allOf": cases,
        }
        taken_over: Schema = {"type": "object", "required": ["include"]}
        if partial:
            taken_over = {"type": "object", "not": {"required": [tag]}}
        short: list[Schema] = [{"enum": bare}] if bare else []
        suffixes = [re.escape(suffix) for kind in kinds for suffix in self._registry.suffixes(kind)]
        if suffixes:
            short.append({"type": "string", "pattern": f"({'|'.join(suffixes)})$"})
        self._defs[name] = {
            "description": f"{' or '.join(kinds)}: a mapping with {tag}:{', or a name alone' if short else ''}",
            "anyOf": [mapping, taken_over, *short],
        }
        return {"$ref": f"#/$defs/{_pointer(name)}"}

    def _names(self, kinds: tuple[str, ...]) -> dict[str, ComponentEntry]:
        """What components can be called: the short name where it is not claimed twice, the qualified one always."""
        entries = [entry for kind in kinds for entry in self._registry.entries(kind)]
        short = [entry.name for entry in entries]
        names = {entry.name: entry for entry in entries if short.count(entry.name) == 1}
        return names | {entry.qualified: entry for entry in entries}

    def _component(self, entry: ComponentEntry, base: Any, *, partial: bool) -> tuple[str | None, bool]:
        """Reference to the fields of a component, and whether it needs any."""
        try:
            cls = self._registry.load(entry)
        except PluginError:
            self._broken[entry.qualified] = entry.kind
            return None, True
        if not (isinstance(cls, type) and attrs.has(cls) and issubclass(cls, base)):
            self._broken[entry.qualified] = entry.kind
            return None, True
        name = f"{entry.kind}.{entry.qualified}" + (".partial" if partial else "")
        if name not in self._defs:
            self._defs[name] = {}
            fields = self._fields(cls, partial=partial, tag=base.tag)
            self._defs[name] = _unless_included(fields)
        needs = any(attribute.default is attrs.NOTHING for attribute, _ in shape_of(cls).fields.values())
        return f"#/$defs/{_pointer(name)}", needs

    def _define(self, name: str, schema: Schema) -> str:
        self._defs[name] = _unless_included(schema)
        return f"#/$defs/{_pointer(name)}"


# ------------------------------------------------------------------------------------------------ small parts


def _or_variable(*options: Schema) -> Schema:
    """Any of the options, or a string with ``${...}``."""
    if any(option in ({}, {"type": "string"}) for option in options):
        return options[0] if len(options) == 1 else {"anyOf": list(options)}
    return {"anyOf": [*options, _VARIABLE]}


def _flat(options: list[Schema]) -> list[Schema]:
    once: list[Schema] = []
    for option in options:
        if option not in once:
            once.append(option)
    return once


def _limits(type_: Any, rules: Mapping[str, Any]) -> Schema:
    """A field's range, choices and pattern in the words of JSON Schema."""
    limits: Schema = {}
    if type_ in (int, float):
        words = {"minimum": "minimum", "maximum": "maximum", "above": "exclusiveMinimum", "below": "exclusiveMaximum"}
        limits = {word: rules[rule] for rule, word in words.items() if rules.get(rule) is not None}
    if type_ is not type(None) and rules.get("choices") is not None:
        limits["enum"] = list(rules["choices"])
    if type_ is str and rules.get("pattern") is not None:
        pattern = rules["pattern"]
        limits["pattern"] = f"^(?:{getattr(pattern, 'pattern', pattern)})$"
    return limits


def _unless_included(schema: Schema) -> Schema:
    """The same object, in which nothing is required where ``include:`` may give it."""
    required = schema.pop("required", [])
    if required:
        schema["anyOf"] = [{"required": required}, {"required": ["include"]}]
    return schema


def _described(schema: Schema, words: str) -> Schema:
    return {**schema, "description": words}


def _first_line(cls: type) -> str:
    lines = (cls.__doc__ or "").strip().splitlines()
    return lines[0].replace("``", "") if lines else ""


def _is_json(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_json(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _pointer(name: str) -> str:
    """A name as part of a JSON pointer in a URI fragment."""
    return name.replace("~", "~0").replace("/", "~1").replace("%", "%25")
