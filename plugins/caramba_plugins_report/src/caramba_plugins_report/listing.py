"""Runs as a table on the terminal and as data."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
from caramba_terminal.numbers import format_average, format_bytes, format_count, format_measured

from caramba_core.errors import InputError
from caramba_plugins_report.records import RunInfo, bytes_under

__all__ = ["KEYS", "as_data", "described", "format_age", "in_order", "table", "terminal_width"]

_HEADS: Final = ("run", "status", "step", "loss", "perplexity", "ratio", "B/token", "age", "size")
_OF_PROGRESS: Final = ("step", "loss", "age")
_LONGEST: Final = 24
"""Characters of a setting's value in the table."""
_AGES: Final = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))

KEYS: Final[dict[str, Callable[[RunInfo], Any]]] = {
    "name": lambda run: (run.name, run.group, run.run),
    "status": lambda run: run.status,
    "step": lambda run: run.step,
    "loss": lambda run: run.loss,
    "perplexity": lambda run: run.perplexity,
    "ratio": lambda run: run.ratio,
    "cache": lambda run: run.cache_bytes_per_token,
    "age": lambda run: None if run.modified is None else -run.modified,
    "size": lambda run: bytes_under(run.path),
}
"""What runs are sorted by."""


def in_order(runs: Sequence[RunInfo], key: str) -> list[RunInfo]:
    """Runs by a key, falling with a ``-`` in front of it; those without a value come last."""
    name, falling = key.removeprefix("-"), key.startswith("-")
    if name not in KEYS:
        raise InputError(f"runs cannot be sorted by {name!r}", expected=", ".join(KEYS), hint="-KEY sorts downwards")
    values = [(KEYS[name](run), run) for run in runs]
    known = sorted((pair for pair in values if pair[0] is not None), key=lambda pair: pair[0], reverse=falling)
    return [run for _, run in known] + [run for value, run in values if value is None]


def as_data(run: RunInfo) -> dict[str, Any]:
    """A run as plain data."""
    return {**attrs.asdict(run), "size_bytes": bytes_under(run.path), "path": str(run.path)}


def table(
    runs: Sequence[RunInfo],
    folder: Path,
    width: int | None,
    *,
    sizes: bool,
    settings: Mapping[str, Sequence[Any]] | None = None,
) -> str:
    """One line a run, its name relative to ``folder``, shortened where a line has no more than ``width`` characters.

    With ``sizes``, for which every folder is walked through, the bytes of each run stand last.  With ``settings``,
    values of each run by their names, these stand in place of step, loss and age.
    """
    now = time.time()
    kept = [index for index, head in enumerate(_HEADS) if index and (settings is None or head not in _OF_PROGRESS)]
    kept = [index for index in kept if sizes or _HEADS[index] != "size"]
    rows = [("run", *(settings or ()), *(_HEADS[index] for index in kept))]
    for number, run in enumerate(runs):
        size = (format_bytes(bytes_under(run.path)),) if sizes else ()
        found = ("", *_cells(run, now), *size)
        own = (_setting(values[number]) for values in (settings or {}).values())
        rows.append((str(run.path.relative_to(folder)), *own, *(found[index] for index in kept)))
    left = 1 + len(settings or ())  # the status
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if width is not None:
        widths[0] = min(widths[0], max(1, width - sum(widths[1:]) - 2 * len(widths[1:])))
    lines = []
    for row in rows:
        cells = [_shortened(row[0], widths[0]).ljust(widths[0])]
        cells += [
            cell.ljust(size) if index == left else cell.rjust(size)
            for index, (cell, size) in enumerate(zip(row[1:], widths[1:], strict=True), 1)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def described(run: RunInfo) -> list[tuple[str, str]]:
    """What the table says of a run, with names."""
    once = f" + {format_bytes(run.cache_bytes_once)} once" if run.cache_bytes_once else ""
    cached = f"{_cached(run)} bytes per token{once}" if run.cache_bytes_per_token is not None else ""
    found = {
        "status": run.status,
        "step": f"{run.step:,}",
        "loss": _number(run.loss, ".4f"),
        "perplexity": "" if run.perplexity is None else format_measured(run.perplexity, run.standard_error),
        "ratio": _number(run.ratio, ".4f"),
        "cache": f"{cached} at {run.cache_context:,}" if cached and run.cache_context else cached,
        "age": format_age(run, time.time()),
        "size": format_bytes(bytes_under(run.path)),
    }
    return [(name, text) for name, text in found.items() if text]


def format_age(run: RunInfo, now: float) -> str:
    """How long ago a run last wrote where it stands: ``3 h``."""
    if run.modified is None:
        return ""
    seconds = max(0.0, now - run.modified)
    size, unit = next(((size, unit) for size, unit in _AGES if seconds >= size), _AGES[-1])
    return f"{int(seconds // size)} {unit}"


def _cells(run: RunInfo, now: float) -> tuple[str, ...]:
    return (
        run.status,
        format_count(run.step),
        _number(run.loss, ".3f"),
        "" if run.perplexity is None else format_measured(run.perplexity, None),
        _number(run.ratio, ".3f"),
        _cached(run),
        format_age(run, now),
    )


def _setting(value: Any) -> str:
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    return _shortened(text, _LONGEST)


def _cached(run: RunInfo) -> str:
    return "" if run.cache_bytes_per_token is None else format_average(run.cache_bytes_per_token)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form if abs(value) < 1e5 else ".3g")


def _shortened(name: str, width: int) -> str:
    """A name of at most ``width`` characters: its middle is left out, so that group and run can still be told."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    if len(name) <= width:
        return name
    kept = width - 1
    return f"{name[: kept // 3]}…{name[len(name) - (kept - kept // 3) :]}"


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is; none of a pipe, whose reader wants whole names."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    try:
        return os.get_terminal_size(1).columns or None
    except OSError:
        return None
