"""The table of results that closes ``caramba run``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from caramba_core.formatting import format_count
from caramba_core.hookspecs import Section, hookimpl

__all__ = ["group_sections"]


@hookimpl
def group_sections(summaries: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Perplexity, cache, parameters, tokens and time of each run of a group, and of its teacher."""
    rows: list[tuple[str, ...]] = []
    teacher = next((one for one in summaries if "teacher" in one.get("perplexity", {})), None)
    if teacher is not None:
        rows.append(("teacher", _perplexity(teacher, "teacher"), "1.000", _cached(teacher, "teacher"), "", "", ""))
    rows += map(_row, summaries)
    columns = ("", "perplexity", "ratio", "cache B/token", "params", "tokens", "time")
    return [Section(title="results", columns=columns, rows=tuple(rows))]


def _row(summary: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        summary["run"],
        _perplexity(summary, "end") if "end" in summary.get("perplexity", {}) else "",
        f"{summary['perplexity_ratio']['end']:.3f}" if "perplexity_ratio" in summary else "",
        _cached(summary, "student"),
        format_count(summary["parameters"]) if "parameters" in summary else "",
        format_count(summary.get("tokens", 0) or summary.get("calibration_tokens", 0)),
        _duration(summary["seconds"]),
    )


def _perplexity(summary: Mapping[str, Any], name: str) -> str:
    error = summary["perplexity_standard_error"][name]
    return f"{summary['perplexity'][name]:.2f}" + ("" if error is None else f" ± {error:.2f}")


def _cached(summary: Mapping[str, Any], model: str) -> str:
    count = summary.get("cache_bytes_per_token", {}).get(model)
    return "" if count is None else f"{count:,.0f}"


def _duration(seconds: float) -> str:
    """Seconds up to ten minutes, then hours and minutes: ``142 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"
