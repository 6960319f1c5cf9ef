"""Config classes as a manifest sees them: their fields by key, and which keys a mapping may have and must have."""

from __future__ import annotations

from typing import Any, Final, get_type_hints

import attrs

from caramba_core.document.problem import Fault, key_of
from caramba_core.errors import PluginError
from caramba_core.manifest.schema import Group, Manifest
from caramba_core.manifest.values import kinds_of, members, words
from caramba_core.suggestions import listing, nearest, suggestion

__all__ = ["Shape", "shape_of"]

_RESOLVED: Final[dict[type, tuple[str, ...]]] = {
    Manifest: ("vars", "extends"),
    Group: ("vars", "matrix", "extends"),
}
"""Keys that are gone when structuring begins, but that a misspelt key may have meant."""

_MOST_UNKNOWN: Final = 30
"""Unknown keys of one mapping that are reported one by one."""


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
        options = " or ".join(words(option) for option in members(type_) if option is not type(None))
        return f"{key}: {options}{f' ({meaning})' if meaning else ''}"

    def _elsewhere(self, key: str) -> str | None:
        """Where an unknown key would be known: one mapping further down."""
        places = [
            f"{outer}:"
            for outer, (_, type_) in self.fields.items()
            for option in members(type_)
            if attrs.has(option) and not kinds_of(option) and key in shape_of(option).fields
        ]
        return f"{key} belongs under {' or '.join(places)}" if places else None


_SHAPES: Final[dict[type, Shape]] = {}


def shape_of(cls: type) -> Shape:
    """The shape of a class, read once."""
    if cls not in _SHAPES:
        _SHAPES[cls] = Shape(cls)
    return _SHAPES[cls]
