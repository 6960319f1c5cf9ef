"""The hooks: the table of results that closes ``caramba run``, and what feeds trackers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from caramba_terminal.numbers import format_average, format_bytes, format_count, format_duration, format_measured

from caramba_core.hookspecs import Section, hookimpl
from caramba_core.manifest.load import Loaded
from caramba_plugins_standard.parallel import process_count, process_rank
from caramba_plugins_standard.tracking import (
    checkpoint_saved,
    evaluated,
    run_failed,
    run_finished,
    run_started,
    step_finished,
)

__all__ = [
    "checkpoint_saved",
    "evaluated",
    "follow",
    "group_sections",
    "run_failed",
    "run_finished",
    "run_started",
    "step_finished",
]


@hookimpl
def follow(load: Callable[[], Loaded]) -> bool:
    """All processes but the first do their part of what that one calls them for."""
    if process_count() == 1:
        return False
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch reads it once: a lost connection is told by us
    from caramba_plugins_standard.parallel.following import follow_first
    from caramba_plugins_standard.parallel.team import meeting

    if process_rank() == 0:
        meeting()
        return False
    follow_first(load)
    return True


@hookimpl
def group_sections(summaries: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Perplexity, cache, parameters, tokens and time of each run of a group, and of its teacher."""
    rows: list[tuple[str, ...]] = []
    teacher = next((one for one in summaries if "teacher" in one.get("perplexity", {})), None)
    contexts = {one["cache_context"] for one in summaries if "cache_context" in one}
    one_context = len(contexts) == 1
    if teacher is not None:
        cached = _cached(teacher, "teacher", one_context)
        rows.append(("teacher", _perplexity(teacher, "teacher"), "1.000", cached, "", "", ""))
    rows += (_row(summary, one_context) for summary in summaries)
    at = f" at {contexts.pop():,}" if one_context else ""
    columns = ("", "perplexity", "ratio", f"cache B/token{at}", "params", "tokens", "time")
    return [Section(title="results", columns=columns, rows=tuple(rows))]


def _row(summary: Mapping[str, Any], one_context: bool) -> tuple[str, ...]:
    return (
        summary["run"],
        _perplexity(summary, "end") if "end" in summary.get("perplexity", {}) else "",
        f"{summary['perplexity_ratio']['end']:.3f}" if "perplexity_ratio" in summary else "",
        _cached(summary, "student", one_context),
        format_count(summary["parameters"]) if "parameters" in summary else "",
        format_count(summary.get("tokens", 0) or summary.get("calibration_tokens", 0)),
        format_duration(summary["seconds"]),
    )


def _perplexity(summary: Mapping[str, Any], name: str) -> str:
    return format_measured(summary["perplexity"][name], summary["perplexity_standard_error"][name])


def _cached(summary: Mapping[str, Any], model: str, one_context: bool) -> str:
    """Bytes per token, and those kept once; the context that they hold for where the table's head does not tell it."""
    count, once = (summary.get(f"cache_bytes_{kind}", {}).get(model) for kind in ("per_token", "once"))
    if count is None:
        return ""
    at = "" if one_context else f" at {summary['cache_context']:,}"
    return format_average(count) + at + (f" + {format_bytes(once)} once" if once else "")
