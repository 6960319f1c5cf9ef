"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

__all__ = ["plain_table", "titled_table"]


def plain_table(columns: Iterable[str], rows: Iterable[Iterable[str]], *, right: Collection[int]) -> Table:
    """A table with a line under its head; the columns with the indexes in ``right`` are right-aligned."""
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if index in right else "left")
    for row in rows:
        table.add_row(*map(Text, row))  # a Text, so that brackets stay brackets
    return table


def titled_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str | int | float | None]]) -> Table:
    """A table of texts and numbers under its title; columns of numbers are right-aligned."""
    texts = [[_shown(cell) for cell in row] for row in rows]
    numbers = [
        all(not cell or cell.lstrip("-")[:1].isdigit() for cell in column) for column in zip(*texts, strict=True)
    ]
    table = plain_table(columns, texts, right=[index for index, right in enumerate(numbers) if right])
    table.title = Text(title)
    table.title_justify = "left"
    return table


def _shown(cell: str | int | float | None) -> str:
    if cell is None:
        return ""
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)
