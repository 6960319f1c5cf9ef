"""The table of runs: what their folders tell without loading a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, overload

import attrs

from caramba._display import printed_text
from caramba._opening import find_runs, run_state
from caramba_core.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["RunInfo", "Runs", "list_runs"]

_COLUMNS: Final = ("name", "group", "run", "status", "step", "perplexity", "ratio", "cached bytes per token")
_TEXT_COLUMNS: Final = 4


@attrs.frozen(kw_only=True)
class RunInfo:
    """One run.

    Attributes:
        name, group, run: the manifest's name, and those of group and run.
        status: ``done``, ``running`` (or killed without notice), ``interrupted``, ``failed`` or ``damaged``.
        step: training steps taken.
        perplexity, standard_error: on the held-out tokens, at the end of the run.
        ratio: that perplexity over the teacher's.
        cache_bytes_per_token: bytes that decoding keeps for each token, counted from allocated tensors.
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
            "" if self.cache_bytes_per_token is None else f"{self.cache_bytes_per_token:,.0f}",
        )


class Runs(Sequence[RunInfo]):
    """Runs in order, as a list; printed, a table."""

    def __init__(self, runs: Iterable[RunInfo]) -> None:
        self._runs = tuple(runs)

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[RunInfo]:
        return iter(self._runs)

    @overload
    def __getitem__(self, index: int) -> RunInfo: ...
    @overload
    def __getitem__(self, index: slice) -> Runs: ...
    def __getitem__(self, index: int | slice) -> RunInfo | Runs:
        return Runs(self._runs[index]) if isinstance(index, slice) else self._runs[index]

    def to_dicts(self) -> list[dict[str, Any]]:
        """Plain data, one mapping for each run; ``pandas.DataFrame(runs.to_dicts())`` takes it."""
        return [{**attrs.asdict(run), "path": str(run.path)} for run in self._runs]

    def __repr__(self) -> str:
        return printed_text(self._print) if self._runs else "no runs"

    def _repr_html_(self) -> str:
        heads = "".join(f"<th>{head}</th>" for head in _COLUMNS)
        rows = (
            "".join(
                f'<td style="text-align: {"left" if column < _TEXT_COLUMNS else "right"}">{escape(cell)}</td>'
                for column, cell in enumerate(run.cells())
            )
            for run in self._runs
        )
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"

    def _print(self, console: Console) -> None:
        from rich.table import Table

        table = Table()
        for column, head in enumerate(_COLUMNS):
            table.add_column(head, justify="left" if column < _TEXT_COLUMNS else "right")
        for run in self._runs:
            table.add_row(*run.cells())
        console.print(table)


def list_runs(path: str | PathLike[str]) -> Runs:
    """The runs under a folder; see :func:`caramba.runs`."""
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}", hint="caramba run makes it; --output names another")
    return Runs(_info(found) for found in find_runs(folder))


def _info(path: Path) -> RunInfo:
    name, group, run = path.resolve().parts[-3:]
    state = run_state(path)
    summary = state.summary or {}
    return RunInfo(
        name=name,
        group=group,
        run=run,
        status=state.status,
        step=state.step,
        perplexity=summary.get("perplexity", {}).get("end"),
        standard_error=summary.get("perplexity_standard_error", {}).get("end"),
        ratio=summary.get("perplexity_ratio", {}).get("end"),
        cache_bytes_per_token=summary.get("cache_bytes_per_token", {}).get("student"),
        path=path,
    )
