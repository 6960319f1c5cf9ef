"""What a component's fields are: type, default, unit, range and meaning, read off its config class.

``explain(registry, "dba")`` gives data; :func:`render` a table.  Sections of a manifest (``train``, ``start``, ...) are
explained the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Final

import attrs
from caramba_document.suggestions import nearest, suggestion

from caramba_core.errors import InputError
from caramba_core.plugins.metadata import ComponentEntry
from caramba_core.plugins.registry import Registry
from caramba_plugins_tools.fields import Field, doc_text, fields_of, is_config, sections

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Explanation", "explain", "explain_entry", "listed", "render", "render_list"]

_COLUMNS: Final = ("field", "type", "default", "range", "meaning")


@attrs.frozen(kw_only=True)
class Explanation:
    """A component, or a section of a manifest (then without a distribution)."""

    name: str
    kind: str
    distribution: str | None = None
    version: str | None = None
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
    explained = [explain_entry(registry, entry) for entry in found]
    if (section := sections(registry).get(name)) is not None:
        kind, fields = "section of a manifest", tuple(fields_of(section))
        explained.insert(0, Explanation(name=name, kind=kind, text=doc_text(section), fields=fields))
    if not explained:
        raise _unknown(registry, name)
    return tuple(explained)


def explain_entry(registry: Registry, entry: ComponentEntry) -> Explanation:
    """What a plugin's entry is; raises :class:`~caramba_core.errors.PluginError` where it does not load."""
    target = registry.load(entry)
    return Explanation(
        name=entry.name,
        kind=entry.kind,
        distribution=entry.distribution,
        version=entry.version,
        text=doc_text(target) if isinstance(target, type) else registry.kinds[entry.kind].gives,
        fields=tuple(fields_of(target)) if is_config(target) else (),
    )


def _unknown(registry: Registry, name: str) -> InputError:
    short = name.rpartition(":")[2].rpartition(".")[2] if ":" in name else name
    known = {entry.name for kind in registry.kinds for entry in registry.entries(kind)} | set(sections(registry))
    near = nearest(short, sorted(known))
    supplier = None if near else registry.supplier(tuple(registry.kinds), short)
    hint = (
        f"it is supplied by {supplier}: pip install {supplier}" if supplier else "caramba explain lists what there is"
    )
    return InputError(f"nothing is called {name!r}{suggestion(near)}", hint=hint)


# ------------------------------------------------------------------------------------------------ on a terminal


def _terminal() -> Console:
    """The console that tables go to: 120 columns wide where nobody looks."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=120)


def render(explanations: Iterable[Explanation]) -> None:
    """Print explanations, each with a table for its own fields and one for those of each part."""
    from caramba_terminal.tables import titled_table
    from rich.text import Text

    console = _terminal()
    for explanation in explanations:
        title = Text(explanation.name, style="bold")
        title.append(f"  {explanation.kind}", style="cyan")
        if explanation.distribution is not None:
            title.append(f"  {explanation.distribution} {explanation.version}", style="dim")
        console.print(title, Text(explanation.text), sep="\n")
        for part, fields in groupby(sorted(explanation.fields, key=_part), _part):
            rows = tuple(_row(field) for field in fields)
            console.print(titled_table(part and f"{part}:", _COLUMNS, rows))


def listed(registry: Registry) -> dict[str, list[str]]:
    """Everything that can be explained: the names of sections and of the components of each kind."""
    names = {kind: list(dict.fromkeys(entry.name for entry in registry.entries(kind))) for kind in registry.kinds}
    return {"section": list(sections(registry))} | {kind: members for kind, members in names.items() if members}


def render_list(registry: Registry) -> None:
    """Print the names of everything that can be explained."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for kind, members in listed(registry).items():
        table.add_row(Text(kind, style="cyan"), ", ".join(members))
    _terminal().print(table)


def _part(field: Field) -> str:
    return field.name.rpartition(".")[0]


def _row(field: Field) -> tuple[str, ...]:
    value = "required" if field.required else field.default
    meaning = f"{field.meaning} [{field.unit}]" if field.unit else field.meaning
    return field.name.rpartition(".")[2], field.type, value, field.range, meaning
