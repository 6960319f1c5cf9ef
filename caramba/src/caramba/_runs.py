"""The table of runs: what their folders tell without loading a model."""

from __future__ import annotations

from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, SupportsIndex, overload

import attrs
from caramba_plugins_standard.opening import find_runs

from caramba._display import Printed
from caramba_core.errors import InputError
from caramba_core.formatting import format_average, format_bytes

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["RunInfo", "Runs", "list_runs", "run_info"]

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


@attrs.frozen(kw_only=True)
class RunInfo:
    """One run.

    Attributes:
        name, group, run: the manifest's name, and those of group and run.
        status: ``done``, ``running`` (or killed without notice), ``interrupted``, ``failed`` or ``damaged``.
        step: training steps taken.
        perplexity, standard_error: on the held-out tokens, at the end of the run.
        ratio: that perplexity over the teacher's.
        cache_bytes_per_token: bytes that decoding keeps per token of a context of ``cache_context`` tokens, beside
            ``cache_bytes_once`` that it keeps whatever the context.
        path: the run's folder, for :func:`caramba.open`.

    What a run has not measured is ``None``.
    """

    name: str
    group: str
    run: str
    status: str
    step: int
    perplexity: float | None
    standard_error: float | None
    ratio: float | None
    cache_bytes_per_token: float | None
    cache_bytes_once: int | None
    cache_context: int | None
    path: Path

    def cells(self) -> tuple[str, ...]:
        """The run's line of a table."""
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2f}"
        return (
            self.name,
            self.group,
            self.run,
            self.status,
            f"{self.step:,}",
            "" if self.perplexity is None else f"{self.perplexity:.2f}{error}",
            "" if self.ratio is None else f"{self.ratio:.3f}",
            self._cached(),
        )

    def _cached(self) -> str:
        if self.cache_bytes_per_token is None:
            return ""
        once = f" + {format_bytes(self.cache_bytes_once)} once" if self.cache_bytes_once else ""
        return f"{format_average(self.cache_bytes_per_token)} at {self.cache_context:,}{once}"


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
            cells = zip(_COLUMNS.values(), run.cells(), strict=True)
            row = "".join(f'<td style="text-align: {side}">{escape(cell)}</td>' for side, cell in cells)
            body += f"<tr>{row}</tr>"
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"

    def _print(self, console: Console) -> None:
        from rich.table import Table

        table = Table()
        for head, side in _COLUMNS.items():
            table.add_column(head, justify=side)
        for run in self:
            table.add_row(*run.cells())
        console.print(table)


def list_runs(path: str | PathLike[str]) -> Runs:
    """The runs under a folder; see :func:`caramba.runs`."""
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}", hint="caramba run makes it; --output names another")
    return Runs(map(run_info, find_runs(folder)))


def run_info(path: Path) -> RunInfo:
    """What a run's folder tells."""
    from caramba_core.run.directory import RunDirectory

    name, group, run = path.resolve().parts[-3:]
    try:
        state, summary = RunDirectory(path).state(), RunDirectory(path).summary() or {}
    except (InputError, ValueError):
        state, summary = None, {}
    return RunInfo(
        name=name,
        group=group,
        run=run,
        status="damaged" if state is None else state.status,
        step=0 if state is None else state.step,
        perplexity=summary.get("perplexity", {}).get("end"),
        standard_error=summary.get("perplexity_standard_error", {}).get("end"),
        ratio=summary.get("perplexity_ratio", {}).get("end"),
        cache_bytes_per_token=summary.get("cache_bytes_per_token", {}).get("student"),
        cache_bytes_once=summary.get("cache_bytes_once", {}).get("student"),
        cache_context=summary.get("cache_context"),
        path=path,
    )
