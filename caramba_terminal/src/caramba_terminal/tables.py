"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rich import box
from rich.table import Table
from rich.text import Text

__all__ = ["plain_table"]


def plain_table(columns: Iterable[str], rows: Iterable[Iterable[str]], *, right: Collection[int]) -> Table:
    """A table with a line under its head; the columns with the indexes in ``right`` are right-aligned."""
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if index in right else "left")
    for row in rows:
        table.add_row(*map(Text, row))  # a Text, so that brackets stay brackets
    return table
