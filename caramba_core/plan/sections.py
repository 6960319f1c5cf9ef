"""Plans on the terminal and as data, followed by the tables that plugins add."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from caramba_core.hookspecs import Section
from caramba_core.plugins.manager import hooks

if TYPE_CHECKING:
    from caramba_core.plan.planning import Plan

__all__ = ["plan_document", "section_data", "section_table", "show"]

_PIPE_WIDTH = 160
"""Columns of output that goes into a file or another program."""


def show(plans: Sequence[Plan], *, full: bool = False, console: Console | None = None) -> None:
    """Print plans, on stdout if no console is given."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=_PIPE_WIDTH)
    for index, plan in enumerate(plans):
        if index:
            console.rule(style="dim")
        plan.render(console, full=full)
        for section in _sections(hooks().plan_sections(plan=plan)):
            console.print(section_table(section))


def plan_document(plan: Plan) -> dict[str, Any]:
    """A plan as ``plan.json`` and ``caramba compile --json`` give it: :meth:`Plan.to_dict`, and plugins' tables."""
    sections = _sections(hooks().plan_sections(plan=plan))
    return {**plan.to_dict(), "sections": [section_data(section) for section in sections]}


def section_data(section: Section) -> dict[str, Any]:
    """A plugin's table as plain data."""
    return {"title": section.title, "columns": list(section.columns), "rows": [list(row) for row in section.rows]}


def section_table(section: Section, *, of: str | None = None) -> Table:
    """A plugin's table; ``of`` names what it is about."""
    title = Text(section.title if of is None else f"{of}: {section.title}")  # a Text, so that brackets stay brackets
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
    numeric = [all(isinstance(row[i], int | float) for row in section.rows) for i in range(len(section.columns))]
    for column, right in zip(section.columns, numeric, strict=True):
        table.add_column(Text(column), justify="right" if right else "left")
    for row in section.rows:
        table.add_row(*(Text(_shown(cell)) for cell in row))
    return table


def _shown(cell: str | int | float | None) -> str:
    if cell is None:
        return ""
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)


def _sections(results: Iterable[Sequence[Section]]) -> list[Section]:
    return [section for sections in results for section in sections]
