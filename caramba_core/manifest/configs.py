"""Config classes as a manifest sees them: their fields by key, what each may hold, the rules of single fields."""

from __future__ import annotations

import keyword
from collections.abc import Mapping
from typing import Any, Final, get_type_hints

import attrs

from caramba_core.component import Component, Layer
from caramba_core.document.faults import Fault
from caramba_core.errors import InvalidValue, PluginError
from caramba_core.kinds import LAYER_KINDS
from caramba_core.manifest.schema import Group, Manifest
from caramba_core.manifest.values import members, words
from caramba_core.suggestions import listing, nearest, suggestion

__all__ = ["Shape", "argument", "article", "key_of", "kinds_of", "of_invalid", "shape_of"]

_RESOLVED: Final[dict[type, tuple[str, ...]]] = {
    Manifest: ("vars", "extends"),
    Group: ("vars", "matrix", "extends"),
}
"""Keys that are gone when structuring begins, but that a misspelt key may have meant."""


_MOST_UNKNOWN: Final = 30
"""Unknown keys of one mapping that are reported one by one."""


def kinds_of(type_: Any) -> tuple[str, ...]:
    """The kinds whose components may stand where a field has this type; none where it is not the base of a kind."""
    if not (isinstance(type_, type) and issubclass(type_, Component) and "kind" in vars(type_)):
        return ()
    return LAYER_KINDS if type_ is Layer else (type_.kind,)


def key_of(attribute: str) -> str:
    """A field's key in a manifest: ``from_`` is written ``from``."""
    bare = attribute.removesuffix("_")
    return bare if keyword.iskeyword(bare) else attribute


@attrs.frozen(eq=False)
class Shape:
    """The fields of a config class by their keys in a manifest."""

    cls: Any
    fields: dict[str, tuple[attrs.Attribute[Any], Any]] = attrs.field(init=False)

    @fields.default
    def _read(self) -> dict[str, tuple[attrs.Attribute[Any], Any]]:
        try:
            types = get_type_hints(self.cls)
        except NameError as error:
            raise PluginError(
                f"a field of {self.cls.__module__}.{self.cls.__qualname__} has a type that cannot be found: {error}",
                hint="types of fields must be imported where the config is defined, not only for type checking",
            ) from None
        return {key_of(a.name): (a, types[a.name]) for a in attrs.fields(self.cls) if a.init}

    def key_faults(self, value: dict[str, Any], name: str | None) -> list[Fault]:
        """Unknown and missing keys; a misspelt key that is missing is one fault, not two.

        ``name`` is what a component's tag says.
        """
        of = "" if name is None else f" of {name}"
        known = self.fields if name is None else {*self.fields, self.cls.tag}
        missing = [key for key, (a, _) in self.fields.items() if a.default is attrs.NOTHING and key not in value]
        absent = [key for key in (*self.fields, *_RESOLVED.get(self.cls, ())) if key not in value]
        faults = []
        unknown = [key for key in value if key not in known]
        for key in unknown[:_MOST_UNKNOWN]:
            near = nearest(key, (*absent, "include"), preferred=missing)
            if near and near[0] in ("extends", "include"):
                missing.clear()  # it would have brought them
            if near and near[0] in missing:
                missing.remove(near[0])
            if near and near[0] in absent:
                absent.remove(near[0])
            faults.append(
                Fault(
                    path=(key,),
                    at="key",
                    message=f"unknown key {key!r}{of}{suggestion(near)}",
                    expected=None if near else f"one of {listing(absent)}" if absent else None,
                    hint=None if near else self._elsewhere(key),
                )
            )
        if len(unknown) > _MOST_UNKNOWN:
            more = f"and {len(unknown) - _MOST_UNKNOWN} unknown keys more"
            faults.append(Fault(path=(unknown[_MOST_UNKNOWN],), at="key", message=more))
        faults.extend(Fault(message=f"missing key {key!r}{of}", expected=self._help(key)) for key in missing)
        return faults

    def _help(self, key: str) -> str:
        attribute, type_ = self.fields[key]
        meaning = attribute.metadata.get("help")
        return f"{key}: {_type_words(type_)}{f' ({meaning})' if meaning else ''}"

    def _elsewhere(self, key: str) -> str | None:
        """Where an unknown key would be known: one mapping further down."""
        places = [
            f"{outer}:"
            for outer, (_, type_) in self.fields.items()
            for option in members(type_)
            if attrs.has(option) and not kinds_of(option) and key in shape_of(option).fields
        ]
        return f"{key} belongs under {' or '.join(places)}" if places else None

    def rule_faults(self, values: Mapping[str, Any]) -> list[Fault]:
        """Every field whose own rules (ranges, choices) its value breaks."""
        faults = []
        for attribute, _ in self.fields.values():
            name = argument(attribute)
            if name in values and attribute.validator is not None and attribute.converter is None:
                try:
                    attribute.validator(None, attribute, values[name])
                except InvalidValue as error:
                    faults.append(of_invalid(error))
                except ValueError as error:
                    faults.append(
                        Fault(path=(key_of(attribute.name),), message=str(error.args[0] if error.args else error))
                    )
        return faults


_SHAPES: Final[dict[type, Shape]] = {}


def shape_of(cls: type) -> Shape:
    """The shape of a class, read once."""
    if cls not in _SHAPES:
        _SHAPES[cls] = Shape(cls)
    return _SHAPES[cls]


def argument(attribute: attrs.Attribute[Any]) -> str:
    """The name of a field in the call of its class."""
    assert attribute.alias is not None
    return attribute.alias


def of_invalid(error: InvalidValue) -> Fault:
    """The fault that a config's own rule reports."""
    path = () if error.field is None else (key_of(error.field), *error.within)
    return Fault(path=path, message=error.message, expected=error.expected, hint=error.hint)


def _type_words(type_: Any) -> str:
    names = []
    for option in members(type_):
        kinds = kinds_of(option)
        if kinds:
            names.append(article(" or ".join(kinds)))
        elif option is not type(None):
            names.append(words(option))
    return " or ".join(names)


def article(noun: str) -> str:
    """``an attention``, ``a layer``."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
