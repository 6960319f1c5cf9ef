"""The tables that plugins add to plans and reports, as data and on the terminal."""

from __future__ import annotations

from typing import Any

from caramba_terminal.tables import plain_table
from rich.table import Table
from rich.text import Text

from caramba_core.hookspecs import Section

__all__ = ["section_data", "section_table"]


def section_data(section: Section) -> dict[str, Any]:
    """A plugin's table as plain data."""
    return {"title": section.title, "columns": list(section.columns), "rows": [list(row) for row in section.rows]}


def section_table(section: Section, *, of: str | None = None) -> Table:
    """A plugin's table; ``of`` names what it is about."""
    rows = [[_shown(cell) for cell in row] for row in section.rows]
    numbers = [all(not cell or cell.lstrip("-")[:1].isdigit() for cell in column) for column in zip(*rows, strict=True)]
    table = plain_table(section.columns, rows, right=[index for index, right in enumerate(numbers) if right])
    table.title = Text(section.title if of is None else f"{of}: {section.title}")
    table.title_justify = "left"
    return table


def _shown(cell: str | int | float | None) -> str:
    if cell is None:
        return ""
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)
