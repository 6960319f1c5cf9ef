"""Plans on the terminal and as data, followed by the tables that plugins add."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from caramba_core.hookspecs import Section
from caramba_core.plugins.manager import hooks

if TYPE_CHECKING:
    from caramba_core.plan.planning import Plan

__all__ = ["plain_table", "plan_document", "section_data", "section_table", "show"]

_PIPE_WIDTH = 160
"""Columns of output that goes into a file or another program."""


def show(plans: Sequence[Plan], *, full: bool = False) -> None:
    """Print plans on stdout."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    for index, plan in enumerate(plans):
        if index:
            console.rule(style="dim")
        plan.render(console, full=full)
        for section in _sections(plan):
            console.print(section_table(section))


def plan_document(plan: Plan) -> dict[str, Any]:
    """A plan as ``plan.json`` and ``caramba compile --json`` give it: :meth:`Plan.to_dict`, and plugins' tables."""
    return {**plan.to_dict(), "sections": [section_data(section) for section in _sections(plan)]}


def section_data(section: Section) -> dict[str, Any]:
    """A plugin's table as plain data."""
    return {"title": section.title, "columns": list(section.columns), "rows": [list(row) for row in section.rows]}


def section_table(section: Section, *, of: str | None = None) -> Table:
    """A plugin's table; ``of`` names what it is about."""
    numeric = [all(isinstance(cell, int | float) for cell in column) for column in zip(*section.rows, strict=True)]
    rows = [[_shown(cell) for cell in row] for row in section.rows]
    table = plain_table(section.columns, rows, right=[index for index, right in enumerate(numeric) if right])
    table.title = Text(section.title if of is None else f"{of}: {section.title}")
    table.title_justify = "left"
    return table


def plain_table(columns: Iterable[str], rows: Iterable[Iterable[str]], *, right: Collection[int]) -> Table:
    """A table with a line under its head; the columns with the indexes in ``right`` are right-aligned."""
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if index in right else "left")
    for row in rows:
        table.add_row(*map(Text, row))  # a Text, so that brackets stay brackets
    return table


def _shown(cell: str | int | float | None) -> str:
    if cell is None:
        return ""
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)


def _sections(plan: Plan) -> list[Section]:
    return [section for sections in hooks().plan_sections(plan=plan) for section in sections]
