"""Plans on the terminal, followed by the tables that plugins add."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from caramba_core.hookspecs import Section
from caramba_core.plugins.manager import hooks

if TYPE_CHECKING:
    from caramba_core.plan.planning import Plan

__all__ = ["section_table", "show"]

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
        for section in _sections(hooks().plan_sections(plan=plan)):
            console.print(section_table(section))


def section_table(section: Section) -> Table:
    """A plugin's table."""
    table = Table(title=section.title, title_justify="left", box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
    numeric = [all(isinstance(row[i], int | float) for row in section.rows) for i in range(len(section.columns))]
    for column, right in zip(section.columns, numeric, strict=True):
        table.add_column(column, justify="right" if right else "left")
    for row in section.rows:
        table.add_row(*("" if cell is None else f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    return table


def _sections(results: Iterable[Sequence[Section]]) -> list[Section]:
    return [section for sections in results for section in sections]
