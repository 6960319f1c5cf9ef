"""The table of runs: what their folders tell without loading a model."""

from __future__ import annotations

from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, SupportsIndex, overload

import attrs
from caramba_plugins_report.records import RunInfo, run_info, runs_under
from caramba_terminal.numbers import format_average, format_bytes

from caramba._display import Printed

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Runs", "list_runs"]

_COLUMNS: Final[dict[str, Literal["left", "right"]]] = {
    "name": "left",
    "group": "left",
    "run": "left",
    "status": "left",
    "step": "right",
    "perplexity": "right",
    "ratio": "right",
    "cached bytes per token": "right",
}
"""The heads of a table of runs, and the side that each column is aligned to."""


class Runs(Printed, tuple[RunInfo, ...]):
    """Runs in order; printed, a table."""

    def to_dicts(self) -> list[dict[str, Any]]:
        """Plain data, one mapping for each run; ``pandas.DataFrame(runs.to_dicts())`` takes it."""
        return [{**attrs.asdict(run), "path": str(run.path)} for run in self]

    @overload
    def __getitem__(self, index: SupportsIndex) -> RunInfo: ...
    @overload
    def __getitem__(self, index: slice) -> Runs: ...
    def __getitem__(self, index: SupportsIndex | slice) -> RunInfo | Runs:
        return Runs(super().__getitem__(index)) if isinstance(index, slice) else super().__getitem__(index)

    def __repr__(self) -> str:
        return super().__repr__() if self else "no runs"

    def _repr_html_(self) -> str:
        heads = "".join(f"<th>{head}</th>" for head in _COLUMNS)
        body = ""
        for run in self:
            cells = zip(_COLUMNS.values(), _cells(run), strict=True)
            row = "".join(f'<td style="text-align: {side}">{escape(cell)}</td>' for side, cell in cells)
            body += f"<tr>{row}</tr>"
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"

    def _print(self, console: Console) -> None:
        from rich.table import Table

        table = Table()
        for head, side in _COLUMNS.items():
            table.add_column(head, justify=side)
        for run in self:
            table.add_row(*_cells(run))
        console.print(table)


def list_runs(path: str | PathLike[str]) -> Runs:
    """The runs under a folder; see :func:`caramba.runs`."""
    return Runs(map(run_info, runs_under(Path(path))))


def _cells(run: RunInfo) -> tuple[str, ...]:
    """A run's line of a table."""
    error = "" if run.standard_error is None else f" ± {run.standard_error:.2f}"
    return (
        run.name,
        run.group,
        run.run,
        run.status,
        f"{run.step:,}",
        "" if run.perplexity is None else f"{run.perplexity:.2f}{error}",
        "" if run.ratio is None else f"{run.ratio:.3f}",
        _cached(run),
    )


def _cached(run: RunInfo) -> str:
    if run.cache_bytes_per_token is None:
        return ""
    once = f" + {format_bytes(run.cache_bytes_once)} once" if run.cache_bytes_once else ""
    return f"{format_average(run.cache_bytes_per_token)} at {run.cache_context:,}{once}"
