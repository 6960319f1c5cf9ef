"""From plain data to typed configs, with cattrs as the dispatcher and strict hooks of our own.

A component's class is looked up by its ``type:`` (a run's by its ``mode:``) in the registry of plugins, so the unions
are open.  Everything that
is wrong is collected, with the path where it is.
"""

from __future__ import annotations

import operator
from functools import partial
from typing import Any, TypeVar, cast, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.errors import StructureHandlerNotFoundError

from caramba_core.document.faults import Fault, Faults
from caramba_core.document.tree import GAP
from caramba_core.errors import InvalidValue, PluginError
from caramba_core.manifest.configs import Shape, argument, article, kinds_of, of_invalid, shape_of
from caramba_core.manifest.values import (
    PLAIN,
    Hook,
    is_list,
    is_literal,
    is_mapping,
    is_union,
    literal,
    members,
    misfit,
    words,
)
from caramba_core.plugins.registry import Registry
from caramba_core.suggestions import listing, nearest, suggestion

__all__ = ["Structurer"]

_T = TypeVar("_T")


class Structurer:
    """Makes configs of plain data; one object of the data becomes one config, wherever it stands."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._converter = Converter(detailed_validation=False)
        self._made: dict[tuple[int, type], tuple[Any, Any]] = {}
        self._classes: dict[tuple[tuple[str, ...], str], type] = {}
        for type_, hook in PLAIN.items():
            if isinstance(type_, type) and type_ not in (object, type(None)):
                self._converter.register_structure_hook(type_, hook)
            else:
                self._converter.register_structure_hook_func(partial(operator.is_, type_), hook)
        factory = self._converter.register_structure_hook_factory
        factory(is_literal, literal)
        factory(is_list, self._list)
        factory(is_mapping, self._mapping)
        factory(is_union, self._union)
        factory(attrs.has, self._config)
        factory(lambda type_: bool(kinds_of(type_)), self._component)

    def structure(self, value: Any, type_: type[_T]) -> _T:
        """The config of a type; raises :class:`~caramba_core.document.faults.Faults`."""
        return cast(_T, self._hook(type_)(value, type_))

    def _hook(self, type_: Any) -> Hook:
        try:
            return self._converter.get_structure_hook(type_)
        except StructureHandlerNotFoundError:
            raise PluginError(f"a config has a field of type {type_}, which a manifest cannot hold") from None

    # ------------------------------------------------------------------------------------------------ collections

    def _list(self, type_: Any) -> Hook:
        arguments = get_args(type_) or (Any, ...)
        fixed = None if type_ is list or len(arguments) == 1 or arguments[-1] is ... else arguments
        item_type = arguments[0]
        is_mutable = (get_origin(type_) or type_) is list

        def structure(value: Any, _: Any) -> Any:
            if not isinstance(value, list):
                hint = (
                    f"write [{value}]" if isinstance(value, str | int | float) and not isinstance(value, bool) else None
                )
                raise misfit(value, "a list", hint=hint)
            if fixed is not None and len(value) != len(fixed):
                raise misfit(value, f"a list of {len(fixed)} items")
            types = fixed or (item_type,) * len(value)
            items, faults, failed = [], list[Fault](), False
            for index, (item, wanted) in enumerate(zip(value, types, strict=True)):
                try:
                    items.append(self._hook(wanted)(item, wanted))
                except Faults as error:
                    failed = True
                    faults.extend(error.below(index))
            if failed:
                raise Faults(faults)
            return items if is_mutable else tuple(items)

        return structure

    def _mapping(self, type_: Any) -> Hook:
        value_type = (*get_args(type_), Any, Any)[1]

        def structure(value: Any, _: Any) -> Any:
            if not isinstance(value, dict):
                raise misfit(value, "a mapping")
            made, faults, failed = {}, list[Fault](), False
            for key, item in value.items():
                try:
                    made[key] = self._hook(value_type)(item, value_type)
                except Faults as error:
                    failed = True
                    faults.extend(error.below(key))
            if failed:
                raise Faults(faults)
            return made

        return structure

    def _union(self, type_: Any) -> Hook:
        options = members(type_)
        optional = type(None) in options
        others = [option for option in options if option is not type(None)]

        def structure(value: Any, _: Any) -> Any:
            if value is None and optional:
                return None
            if len(others) == 1:
                return self._hook(others[0])(value, others[0])
            failures: list[tuple[Any, Faults]] = []
            for option in others:
                try:
                    return self._hook(option)(value, option)
                except Faults as error:
                    failures.append((option, error))
            near = [error for option, error in failures if _same_shape(value, option)]
            if len(near) == 1 or value is GAP:
                raise (near or [failures[0][1]])[0]
            raise misfit(value, words(type_))

        return structure

    # ------------------------------------------------------------------------------------------------ configs

    def _config(self, cls: Any) -> Hook:
        shape = Shape(cls)

        def structure(value: Any, _: Any) -> Any:
            if not isinstance(value, dict):
                raise misfit(value, "a mapping")
            return self._make(shape, value, None)

        return structure

    def _make(self, shape: Shape, value: dict[str, Any], name: str | None) -> Any:
        """A config from a mapping; ``name`` is what a component's tag says."""
        known = self._made.get((id(value), shape.cls))
        if known is not None:
            if isinstance(known[1], Faults):
                raise known[1]
            return known[1]
        try:
            made = self._made_anew(shape, value, name)
        except Faults as error:
            self._made[id(value), shape.cls] = (value, error)
            raise
        self._made[id(value), shape.cls] = (value, made)
        return made

    def _made_anew(self, shape: Shape, value: dict[str, Any], name: str | None) -> Any:
        faults = list(shape.key_faults(value, name))
        failed = bool(faults)
        fields: dict[str, Any] = {}
        for key, (attribute, type_) in shape.fields.items():
            given, is_implied = value.get(key), attribute.metadata.get("implied", False)
            if key in value or is_implied:
                try:
                    made = self._implied(type_) if given is None and is_implied else self._hook(type_)(given, type_)
                    fields[argument(attribute)] = made
                except Faults as error:
                    failed = True
                    faults.extend(_with_default_hint(error.below(key), attribute, given))
        broken = shape.rule_faults(fields)
        if failed or broken:
            raise Faults((*faults, *broken))
        try:
            return shape.cls(**fields)
        except InvalidValue as error:
            raise Faults((of_invalid(error),)) from None
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            label = name or shape.cls.__name__
            raise Faults((Fault(message=f"{label} cannot be made of these values: {error}"),)) from None

    def _implied(self, type_: Any) -> Any:
        """The default component of the kind that a field holds."""
        (kind,) = next(kinds for option in members(type_) if (kinds := kinds_of(option)))
        try:
            return self._registry.default(kind)
        except PluginError as error:
            raise Faults((Fault(message=error.message, expected=error.expected, hint=error.hint),)) from None

    def _component(self, base: Any) -> Hook:
        kinds, tag = kinds_of(base), base.tag
        what = article(" or ".join(kinds))

        def structure(value: Any, _: Any) -> Any:
            if isinstance(value, str):
                value = self._spelled_out(value, kinds, tag)
            if not isinstance(value, dict):
                raise misfit(value, f"{what} (a mapping with {tag}:)")
            if tag not in value:
                raise Faults((self._no_tag(value, tag, kinds),))
            name = value[tag]
            if not isinstance(name, str):
                raise Faults(misfit(name, f"the name of {what}").below(tag))
            return self._make(shape_of(self._class(name, base)), value, name)

        return structure

    def _spelled_out(self, value: str, kinds: tuple[str, ...], tag: str) -> dict[str, Any]:
        """The mapping that a bare string is short for: the name of a component, or of a file for one."""
        try:
            entries = [self._registry.for_suffix(kind, value) for kind in kinds]
        except PluginError as error:
            raise Faults((Fault(message=error.message, expected=error.expected, hint=error.hint),)) from None
        for entry in filter(None, entries):
            return {tag: entry.qualified, "path": value}
        return {tag: value}

    def _class(self, name: str, base: Any) -> type:
        """The config class that a component's name stands for."""
        kinds = kinds_of(base)
        known = self._classes.get((kinds, name))
        if known is not None:
            return known
        try:
            entry = self._registry.find(kinds, name)
        except PluginError as error:
            raise Faults((self._unknown(kinds, name, error, base.tag),)) from None
        try:
            cls = self._registry.load(entry)
        except PluginError as error:
            raise Faults((Fault(path=(base.tag,), message=error.message, hint=error.hint),)) from None
        if not (isinstance(cls, type) and attrs.has(cls) and issubclass(cls, base)):
            message = f"{entry.qualified} is no config of {article(entry.kind)}"
            hint = f"this is a fault of {entry.distribution} {entry.version}"
            raise Faults((Fault(path=(base.tag,), message=message, hint=hint),))
        self._classes[kinds, name] = cls
        return cls

    def _unknown(self, kinds: tuple[str, ...], name: str, error: PluginError, tag: str) -> Fault:
        """What to say of a name that no installed plugin gives these kinds."""
        known = [entry.name for kind in kinds for entry in self._registry.entries(kind)]
        missing = self._registry.supplier(kinds, name) is not None or name in known or ":" in name
        near = () if missing else nearest(name, known)
        hint = error.hint
        if near and hint is not None and hint.startswith("did you mean"):
            hint = None
        elsewhere = [
            kind
            for kind in self._registry.kinds
            if kind not in kinds and any(e.name == name for e in self._registry.entries(kind))
        ]
        if elsewhere and not near:
            hint = f"{name} is {article(elsewhere[0])}, which cannot stand here"
        expected = None if near else error.expected
        return Fault(path=(tag,), message=f"{error.message}{suggestion(near)}", expected=expected, hint=hint)

    def _no_tag(self, value: dict[str, Any], tag: str, kinds: tuple[str, ...]) -> Fault:
        near = [key for key in value if nearest(key, [tag])]
        if near:
            return Fault(path=(near[0],), at="key", message=f"unknown key {near[0]!r}, did you mean {tag!r}?")
        known = sorted({entry.name for kind in kinds for entry in self._registry.entries(kind)})
        expected = f"the name of {article(' or '.join(kinds))}: {listing(known)}"
        return Fault(message=f"missing key {tag!r}", expected=expected)


def _with_default_hint(faults: Any, attribute: attrs.Attribute[Any], value: Any) -> list[Fault]:
    """Where a value is null, say how to get the default."""
    if value is not None or attribute.default is attrs.NOTHING:
        return list(faults)
    return [attrs.evolve(fault, hint=fault.hint or "leave the key out for its default") for fault in faults]


def _same_shape(value: Any, type_: Any) -> bool:
    """Whether a value looks like it is meant as this type, though something in it is wrong."""
    if isinstance(value, dict):
        return is_mapping(type_) or attrs.has(type_)
    if isinstance(value, list):
        return is_list(type_)
    return False
