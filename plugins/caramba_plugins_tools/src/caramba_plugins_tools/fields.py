"""What a manifest may say: the fields of every config class, described once for tables, JSON Schema and pages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, get_args

import attrs

from caramba_core import modes
from caramba_core.components import Model
from caramba_core.errors import PluginError
from caramba_core.manifest import schema
from caramba_core.manifest.values import is_list, is_literal, is_mapping, kinds_of, members, settings_of
from caramba_core.plugins.registry import Registry

__all__ = ["COMPOSITION", "INCLUDE", "Field", "doc_text", "fields_of", "is_config", "sections"]

_SECTIONS: Final[dict[str, type]] = {
    "manifest": schema.Manifest,
    "model": Model,
    "group": schema.Group,
    "teacher": modes.Teacher,
    "data": modes.Data,
    "eval": modes.Evaluation,
    "run": modes.Run,
    "verify": modes.Verify,
}
"""The parts of every manifest that are no components."""

_BOUNDS: Final = {"minimum": ">=", "above": ">", "maximum": "<=", "below": "<"}

_WORDS: Final[dict[Any, str]] = {
    bool: "true | false",
    int: "integer",
    float: "number",
    str: "text",
    Path: "file name",
    type(None): "null",
    Any: "anything",
    object: "anything",
}


@attrs.frozen
class Field:
    """One key of a manifest; ``name`` is dotted for the fields of a part: ``rope.theta``."""

    name: str
    type: str
    meaning: str
    required: bool = False
    default: str = ""
    unit: str = ""
    range: str = ""

    @property
    def described(self) -> str:
        """The meaning with the unit."""
        return f"{self.meaning} ({self.unit})" if self.unit and self.unit not in self.meaning else self.meaning


INCLUDE: Final = Field("include", "text | list of text", "files that this mapping is laid over; its own keys win")
"""May stand in every mapping of a manifest."""

COMPOSITION: Final[dict[type, tuple[Field, ...]]] = {
    schema.Manifest: (
        Field("vars", "mapping", "variables: the values that ${name} stands for"),
        Field("extends", "text | list of text", "manifests or presets that this one is laid over, key by key"),
    ),
    schema.Group: (
        Field("vars", "mapping", "variables of this group, over the manifest's"),
        Field("extends", "text", "another group that this one is laid over"),
        Field("matrix", "mapping", "lists of values of variables: one group for each combination"),
        Field("model", "model", "what differs from the manifest's model in this group"),
    ),
    Model: (
        Field("from", "origin", "what the model is taken from: teacher"),
        Field("replace", "mapping", "with from: the layers that nodes get instead, by patterns of their names"),
    ),
}
"""Keys that are resolved while a manifest is read: what is written differs from the fields of its classes."""


def sections(registry: Registry) -> dict[str, type]:
    """The parts of a manifest that are no components, by the key that they stand under; those of modes too."""
    found = dict(_SECTIONS)
    for entry in registry.entries("mode"):
        with suppress(PluginError):
            for key, (_, type_) in settings_of(registry.load(entry)).items():
                parts = [part for part in members(type_) if attrs.has(part) and not kinds_of(part)]
                if parts:
                    found.setdefault(key, parts[0])
    return found


def is_config(target: Any) -> bool:
    """Whether a plugin's entry is a config class, with fields of its own."""
    return isinstance(target, type) and attrs.has(target)


def fields_of(cls: Any, prefix: str = "") -> Iterator[Field]:
    """The fields of a config class, those of its parts behind each part."""
    composed = {field.name: field for field in COMPOSITION.get(cls, ())}
    for key, (attribute, type_) in settings_of(cls).items():
        if key in composed:
            continue
        rules = attribute.metadata
        required = attribute.default is attrs.NOTHING
        yield Field(
            name=prefix + key,
            type=_type_words(type_, rules.get("choices") or ()),
            meaning=rules.get("help") or "",
            required=required,
            default="" if required else _default(attribute.default),
            unit=rules.get("unit") or "",
            range=_range(rules),
        )
        for part in members(type_):
            if attrs.has(part) and not kinds_of(part) and not prefix and part not in _SECTIONS.values():
                yield from fields_of(part, f"{key}.")
    yield from composed.values()


def doc_text(cls: type) -> str:
    """A docstring as plain paragraphs, without reStructuredText's marks."""
    text = inspect.cleandoc(cls.__doc__ or "")
    text = re.sub(r":\w+:`~?([^`]*)`", lambda found: found[1].rpartition(".")[2], text)
    return text.replace("``", "")


def _type_words(type_: Any, choices: Sequence[Any] = ()) -> str:
    """A type as a manifest's user knows it: ``integer``, ``shared | latent``, ``list of layer``."""
    words: list[str] = []
    for option in members(type_):
        if kinds_of(option):
            words.extend(kinds_of(option))
        elif choices and option in (str, int, float):
            words.extend(map(str, choices))
        elif option in _WORDS:
            words.append(_WORDS[option])
        elif is_literal(option):
            words.extend(str(choice) for choice in get_args(option))
        elif is_list(option):
            words.append(_list_words(option))
        elif is_mapping(option):
            words.append("mapping")
        elif option in _SECTIONS.values():
            words.append(next(name for name, cls in _SECTIONS.items() if cls is option))
        else:
            words.append(re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", option.__name__).lower())
    return " | ".join(words)


def _list_words(type_: Any) -> str:
    arguments = get_args(type_)
    if not arguments:
        return "list"
    if arguments[-1] is ... or len(arguments) == 1:
        return f"list of {_type_words(arguments[0])}"
    return f"[{', '.join(map(_type_words, arguments))}]"


def _default(default: Any) -> str:
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # a class, which its stubs do not say
        return "computed" if default.takes_self else _written(default.factory())
    return _written(default)


def _written(value: Any) -> str:
    """A default as a manifest would write it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_written, value))}]"
    return str(value)


def _range(rules: Mapping[str, Any]) -> str:
    """``>= 1, <= 8``, or the form of a text."""
    bounds = [f"{sign} {rules[rule]:g}" for rule, sign in _BOUNDS.items() if rules.get(rule) is not None]
    return ", ".join(bounds) or str(rules.get("form") or "")
