"""What a component's fields are: type, default, unit, range and meaning, read off its config class.

``explain(registry, "dba")`` gives data; :func:`render` a table.  Sections of a manifest (``train``, ``start``, ...) are
explained the same way.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import attrs

from caramba_core import modes
from caramba_core.errors import InputError, PluginError
from caramba_core.manifest import schema
from caramba_core.manifest.configs import kinds_of, shape_of
from caramba_core.manifest.values import is_list, is_literal, is_mapping, members
from caramba_core.model import Model
from caramba_core.plugins.metadata import ComponentEntry
from caramba_core.plugins.registry import Registry
from caramba_core.suggestions import nearest, suggestion

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["Explanation", "Field", "explain", "fields_of", "render", "sections"]

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


@attrs.frozen(kw_only=True)
class Field:
    """One field; ``name`` is dotted for the fields of a part (``rope.theta``), ``default`` as a manifest writes it."""

    name: str
    type: str
    required: bool
    default: str
    unit: str
    range: str
    meaning: str


@attrs.frozen(kw_only=True)
class Explanation:
    """A component, or a section of a manifest (then without a distribution)."""

    name: str
    kind: str
    distribution: str | None
    version: str | None
    text: str
    fields: tuple[Field, ...]


def explain(registry: Registry, name: str) -> tuple[Explanation, ...]:
    """What is called ``name``: a short or qualified name, or ``kind.name`` where several kinds have one.

    Raises :class:`InputError` for a name that nothing has, and :class:`~caramba_core.errors.PluginError` where what has
    it does not load.
    """
    found = [
        entry
        for kind in registry.kinds
        for entry in registry.entries(kind)
        if name in (entry.name, entry.qualified, f"{kind}.{entry.name}", f"{kind}.{entry.qualified}")
    ]
    explained = [_component(registry, entry) for entry in found]
    section = sections(registry).get(name)
    if section is not None:
        explained.insert(0, _section(name, section))
    if not explained:
        raise _unknown(registry, name)
    return tuple(explained)


def sections(registry: Registry) -> dict[str, type]:
    """The parts of a manifest that are no components, those of modes too."""
    found = dict(_SECTIONS)
    for entry in registry.entries("mode"):
        with suppress(PluginError):
            for key, (_, type_) in shape_of(registry.load(entry)).fields.items():
                parts = [part for part in members(type_) if attrs.has(part) and not kinds_of(part)]
                if parts:
                    found.setdefault(key, parts[0])
    return found


def _section(name: str, cls: type) -> Explanation:
    return Explanation(
        name=name,
        kind="section of a manifest",
        distribution=None,
        version=None,
        text=_text(cls),
        fields=tuple(fields_of(cls)),
    )


def _component(registry: Registry, entry: ComponentEntry) -> Explanation:
    target = registry.load(entry)
    is_config = isinstance(target, type) and attrs.has(target)
    return Explanation(
        name=entry.name,
        kind=entry.kind,
        distribution=entry.distribution,
        version=entry.version,
        text=_text(target) if isinstance(target, type) else registry.kinds[entry.kind].gives,
        fields=tuple(fields_of(target)) if is_config else (),
    )


def _unknown(registry: Registry, name: str) -> InputError:
    short = name.rpartition(":")[2].rpartition(".")[2] if ":" in name else name
    known = {entry.name for kind in registry.kinds for entry in registry.entries(kind)} | set(sections(registry))
    near = nearest(short, sorted(known))
    supplier = registry.supplier(tuple(registry.kinds), short)
    return InputError(
        f"nothing is called {name!r}{suggestion(near)}",
        hint=f"it is supplied by {supplier}: pip install {supplier}"
        if supplier is not None and not near
        else "caramba explain lists what there is",
    )


# ------------------------------------------------------------------------------------------------ fields


def fields_of(cls: Any, prefix: str = "") -> Iterator[Field]:
    """The fields of a config class, those of its parts behind each part."""
    for key, (attribute, type_) in shape_of(cls).fields.items():
        rules = attribute.metadata
        required = attribute.default is attrs.NOTHING
        yield Field(
            name=prefix + key,
            type=type_words(type_),
            required=required,
            default="" if required else _default(attribute.default),
            unit=rules.get("unit") or "",
            range=_range(rules),
            meaning=rules.get("help") or "",
        )
        for part in members(type_):
            if attrs.has(part) and not kinds_of(part) and not prefix and part not in _SECTIONS.values():
                yield from fields_of(part, f"{key}.")


def type_words(type_: Any) -> str:
    """A type as a manifest's user knows it: ``integer``, ``'shared' | 'latent'``, ``list of layer``."""
    words: list[str] = []
    for option in members(type_):
        if kinds_of(option):
            words.extend(kinds_of(option))
        elif option in _WORDS:
            words.append(_WORDS[option])
        elif is_literal(option):
            words.extend(str(choice) for choice in get_args(option))
        elif is_list(option):
            words.append(_list_words(option))
        elif is_mapping(option):
            words.append("mapping")
        else:
            words.append(_snake(option.__name__))
    return " | ".join(words)


def _list_words(type_: Any) -> str:
    arguments = get_args(type_)
    if not arguments:
        return "list"
    if arguments[-1] is ... or len(arguments) == 1:
        return f"list of {type_words(arguments[0])}"
    return f"[{', '.join(map(type_words, arguments))}]"


def _default(default: Any) -> str:
    factory = getattr(default, "factory", None)  # of attrs.Factory, which is no class to its stubs
    if factory is None:
        return _written(default)
    return "computed" if default.takes_self else _written(factory())


def _written(value: Any) -> str:
    """A default as a manifest would write it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, dict):
        return "{}" if not value else str(value)
    return str(value)


def _range(rules: Any) -> str:
    """``1 .. 8``, ``> 0``, or the form of a text."""
    low = _bound(">=", rules.get("minimum")) or _bound(">", rules.get("above"))
    high = _bound("<=", rules.get("maximum")) or _bound("<", rules.get("below"))
    parts = [part for part in (low, high) if part]
    if not parts and rules.get("form"):
        return str(rules["form"])
    return ", ".join(parts)


def _bound(sign: str, value: float | None) -> str:
    return "" if value is None else f"{sign} {value:g}"


def _text(cls: type) -> str:
    """A docstring as plain paragraphs, without reStructuredText's marks."""
    text = inspect.cleandoc(cls.__doc__ or "")
    text = re.sub(r":\w+:`~?([^`]*)`", lambda found: found[1].rpartition(".")[2], text)
    return text.replace("``", "")


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


# ------------------------------------------------------------------------------------------------ on a terminal


def render(explanation: Explanation, console: Console) -> None:
    """Print one explanation."""
    from rich.text import Text

    title = Text(explanation.name, style="bold")
    title.append(f"  {explanation.kind}", style="cyan")
    if explanation.distribution is not None:
        title.append(f"  {explanation.distribution} {explanation.version}", style="dim")
    console.print(title)
    if explanation.text:
        console.print(Text(explanation.text))
    parts: dict[str, list[Field]] = {}
    for field in explanation.fields:
        parts.setdefault(field.name.rpartition(".")[0], []).append(field)
    for part, fields in parts.items():
        if part:
            console.print(Text(f"{part}:", style="bold"))
        console.print(_table(fields))


def _table(fields: Sequence[Field]) -> Table:
    """The fields of a component or of one of its parts."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False, padding=(0, 1))
    table.add_column("field", no_wrap=True, style="bold")
    table.add_column("type", style="cyan", max_width=28)
    table.add_column("default", max_width=16)
    table.add_column("range", max_width=24)
    table.add_column("meaning")
    for field in fields:
        default = Text("required", style="yellow") if field.required else Text(field.default, style="dim")
        meaning = Text(field.meaning)
        if field.unit:
            meaning.append(f" [{field.unit}]", style="dim")
        table.add_row(field.name.rpartition(".")[2], field.type, default, field.range, meaning)
    return table
