"""From plain data to typed configs, strictly: nothing is converted, and everything that is wrong is collected.

A component's class is looked up by its ``type:`` (a run's by its ``mode:``) in the registry of plugins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, get_args, get_origin

import attrs
from caramba_document.problem import Fault, key_of
from caramba_document.source import TextSpan
from caramba_document.suggestions import article, listing, nearest, suggestion
from caramba_document.tree import GAP, Gap, as_read, problem_at

from caramba_core.components import Model
from caramba_core.errors import Faults, InvalidValue, ManifestError, PluginError
from caramba_core.manifest.schema import Group, Manifest
from caramba_core.manifest.values import (
    PLAIN,
    is_list,
    is_literal,
    is_mapping,
    kinds_of,
    literal,
    members,
    misfit,
    settings_of,
    words,
)
from caramba_core.plugins.registry import Registry, registry

__all__ = ["Structurer", "structure_model"]

_RESOLVED: Final[dict[type, tuple[str, ...]]] = {Manifest: ("vars", "extends"), Group: ("vars", "matrix", "extends")}
"""Keys that are gone when structuring begins, but that a misspelt key may have meant."""

_MOST_UNKNOWN: Final = 30
"""Unknown keys of one mapping that are reported one by one."""


def structure_model(model: Mapping[str, Any], *, origin: str = "model") -> Model:
    """A typed model from plain data in the words of a manifest; ``origin`` names it in problems."""
    try:
        made: Model = Structurer(registry()).structure(as_read(model), Model)
    except Faults as error:
        nowhere = Gap(TextSpan.nowhere(origin))
        raise ManifestError(tuple(problem_at(nowhere, fault) for fault in error.below("model"))) from None
    return made


class Structurer:
    """Makes configs of plain data; one object of the data becomes one config, wherever it stands."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._made: dict[tuple[int, type], tuple[Any, Any]] = {}

    def structure(self, value: Any, type_: Any) -> Any:
        """The object of a type; raises :class:`~caramba_core.errors.Faults`."""
        if type_ in PLAIN:
            return PLAIN[type_][1](value)
        if is_literal(type_):
            return literal(value, type_)
        if is_list(type_):
            return self._list(value, type_)
        if is_mapping(type_):
            return self._mapping(value, type_)
        if len(members(type_)) > 1:
            return self._union(value, type_)
        if kinds_of(type_):
            return self._component(value, type_)
        if not attrs.has(type_):
            raise PluginError(f"a config has a field of type {type_}, which a manifest cannot hold")
        if not isinstance(value, dict):
            raise misfit(value, "a mapping")
        return self._made_once(type_, value, None)

    # ------------------------------------------------------------------------------------------------ collections

    def _each(self, items: Iterable[tuple[str | int, Any, Any]]) -> dict[str | int, Any]:
        """What values of types become, by key or index; the faults of all of them together."""
        made, faults, failed = {}, list[Fault](), False
        for part, value, type_ in items:
            try:
                made[part] = self.structure(value, type_)
            except Faults as error:
                failed = True
                faults.extend(error.below(part))
        if failed:
            raise Faults(*faults)
        return made

    def _list(self, value: Any, type_: Any) -> Any:
        if not isinstance(value, list):
            is_one = isinstance(value, str | int | float) and not isinstance(value, bool)
            raise misfit(value, "a list", hint=f"write [{value}]" if is_one else None)
        kind, types = get_origin(type_) or type_, get_args(type_) or (Any, ...)
        if kind is not tuple or types[-1] is ...:
            types = types[:1] * len(value)
        elif len(value) != len(types):
            raise misfit(value, f"a list of {len(types)} items")
        made = self._each(zip(range(len(value)), value, types, strict=True)).values()
        return list(made) if kind is list else tuple(made)

    def _mapping(self, value: Any, type_: Any) -> Any:
        if not isinstance(value, dict):
            raise misfit(value, "a mapping")
        item_type = (*get_args(type_), Any, Any)[1]
        return self._each((key, item, item_type) for key, item in value.items())

    def _union(self, value: Any, type_: Any) -> Any:
        options = [option for option in members(type_) if option is not type(None)]
        if value is None and len(options) < len(members(type_)):
            return None
        if len(options) == 1:
            return self.structure(value, options[0])
        faults = []
        for option in options:
            try:
                return self.structure(value, option)
            except Faults as error:
                if value is GAP or _same_shape(value, option):
                    faults.append(error)
        raise faults[0] if len(faults) == 1 or value is GAP else misfit(value, words(type_))

    # ------------------------------------------------------------------------------------------------ configs

    def _made_once(self, cls: Any, value: dict[str, Any], name: str | None) -> Any:
        """The config of a mapping; ``name`` is what a component's tag says."""
        key = id(value), cls
        if key not in self._made:
            try:
                made = self._config(cls, value, name)
            except Faults as error:
                made = error
            self._made[key] = value, made  # with the mapping, so that no other one gets its id
        if isinstance(made := self._made[key][1], Faults):
            raise made
        return made

    def _config(self, cls: Any, value: dict[str, Any], name: str | None) -> Any:
        faults = _key_faults(cls, value, name)
        failed = False
        arguments: dict[str, Any] = {}
        for key, (attribute, type_) in settings_of(cls).items():
            given, is_implied = value.get(key), attribute.metadata.get("implied", False)
            if key not in value and not is_implied:
                continue
            try:
                made = self._implied(type_) if given is None and is_implied else self.structure(given, type_)
            except Faults as error:
                failed = True
                found = error.below(key)
                if given is None and attribute.default is not attrs.NOTHING:
                    found = [attrs.evolve(one, hint=one.hint or "leave the key out for its default") for one in found]
                faults.extend(found)
            else:
                faults.extend(_broken_rules(attribute, made))
                arguments[str(attribute.alias)] = made
        if failed or faults:
            raise Faults(*faults)
        try:
            return cls(**arguments)
        except InvalidValue as error:
            raise Faults(Fault.of(error)) from None
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            label = name or cls.__name__
            raise Faults(Fault(message=f"{label} cannot be made of these values: {error}")) from None

    def _implied(self, type_: Any) -> Any:
        """The default component of the kind that a field holds."""
        (kind,) = next(kinds for option in members(type_) if (kinds := kinds_of(option)))
        try:
            return self._registry.default(kind)
        except PluginError as error:
            raise Faults(Fault.of(error)) from None

    # ------------------------------------------------------------------------------------------------ components

    def _component(self, value: Any, base: Any) -> Any:
        tag, kinds, what = base.tag, kinds_of(base), words(base)
        if isinstance(value, str):
            value = self._spelled_out(value, kinds, tag)
        if not isinstance(value, dict):
            raise misfit(value, f"{what} (a mapping with {tag}:)")
        if tag not in value:
            raise Faults(self._no_tag(value, tag, kinds))
        name = value[tag]
        if not isinstance(name, str):
            raise Faults(*misfit(name, f"the name of {what}").below(tag))
        return self._made_once(self._class(name, base), value, name)

    def _spelled_out(self, value: str, kinds: tuple[str, ...], tag: str) -> dict[str, Any]:
        """The mapping that a bare string is short for: the name of a component, or of a file for one."""
        try:
            entries = [self._registry.for_suffix(kind, value) for kind in kinds]
        except PluginError as error:
            raise Faults(Fault.of(error)) from None
        return next(({tag: entry.qualified, "path": value} for entry in entries if entry), {tag: value})

    def _class(self, name: str, base: Any) -> type:
        """The config class that a component's name stands for."""
        try:
            cls: type = self._registry.load(self._registry.find(kinds_of(base), name))
        except PluginError as error:
            raise Faults(Fault.of(error, base.tag)) from None
        if not issubclass(cls, base):  # a field may ask for less than all of a kind
            expected = f"a class derived from {base.__module__}.{base.__qualname__}"
            raise Faults(Fault(path=(base.tag,), message=f"{name!r} cannot stand here", expected=expected))
        return cls

    def _no_tag(self, value: dict[str, Any], tag: str, kinds: tuple[str, ...]) -> Fault:
        near = [key for key in value if nearest(key, [tag])]
        if near:
            return Fault(path=(near[0],), at="key", message=f"unknown key {near[0]!r}, did you mean {tag!r}?")
        known = sorted({entry.name for kind in kinds for entry in self._registry.entries(kind)})
        expected = f"the name of {article(' or '.join(kinds))}: {listing(known)}"
        return Fault(message=f"missing key {tag!r}", expected=expected)


def _key_faults(cls: Any, value: dict[str, Any], name: str | None) -> list[Fault]:
    """Unknown and missing keys; a misspelt key that is missing is one fault, not two.

    ``name`` is what a component's tag says.
    """
    fields = settings_of(cls)
    of = "" if name is None else f" of {name}"
    known = fields if name is None else {*fields, cls.tag}
    missing = [key for key, (a, _) in fields.items() if a.default is attrs.NOTHING and key not in value]
    absent = [key for key in (*fields, *_RESOLVED.get(cls, ())) if key not in value]
    faults = []
    unknown = [key for key in value if key not in known]
    for key in unknown[:_MOST_UNKNOWN]:
        near = nearest(key, (*absent, "include"), preferred=missing) or nearest(key, filter(value.__contains__, fields))
        meant = near[0] if near else None
        if meant in ("extends", "include"):
            missing.clear()  # it would have brought them
        missing, absent = [[one for one in keys if one != meant] for keys in (missing, absent)]
        faults.append(
            Fault(
                path=(key,),
                at="key",
                message=f"unknown key {key!r}{of}{suggestion(near)}",
                expected=None if near or not absent else f"one of {listing(absent)}",
                hint=None if near else _elsewhere(key, fields),
            )
        )
    if len(unknown) > _MOST_UNKNOWN:
        more = f"and {len(unknown) - _MOST_UNKNOWN} unknown keys more"
        faults.append(Fault(path=(unknown[_MOST_UNKNOWN],), at="key", message=more))
    for attribute, type_ in (fields[key] for key in missing):
        key, meaning = key_of(attribute.name), attribute.metadata.get("help")
        options = " or ".join(words(option) for option in members(type_) if option is not type(None))
        expected = f"{key}: {options} ({meaning})" if meaning else f"{key}: {options}"
        faults.append(Fault(message=f"missing key {key!r}{of}", expected=expected))
    return faults


def _elsewhere(key: str, fields: dict[str, tuple[attrs.Attribute[Any], Any]]) -> str | None:
    """Where an unknown key would be known: one mapping further down."""
    places = [
        f"{outer}:"
        for outer, (_, type_) in fields.items()
        for option in members(type_)
        if attrs.has(option) and not kinds_of(option) and key in settings_of(option)
    ]
    return f"{key} belongs under {' or '.join(places)}" if places else None


def _broken_rules(attribute: attrs.Attribute[Any], value: Any) -> Iterator[Fault]:
    """What a field's own rules (ranges, choices) have against its value; found before a config is made of all."""
    try:
        if attribute.validator is not None:
            attribute.validator(None, attribute, value)
    except InvalidValue as error:
        yield Fault.of(error)
    except ValueError as error:
        yield Fault(path=(key_of(attribute.name),), message=str(error.args[0] if error.args else error))


def _same_shape(value: Any, type_: Any) -> bool:
    """Whether a value looks like it is meant as this type, though something in it is wrong."""
    if isinstance(value, dict):
        return is_mapping(type_) or attrs.has(type_)
    return isinstance(value, list) and is_list(type_)
