"""What a run leaves for people: the resolved manifest of its group, the closing table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caramba_core.formatting import format_count, format_duration
from caramba_core.manifest.load import Loaded
from caramba_core.manifest.schema import Group
from caramba_core.manifest.writing import dump
from caramba_core.plugins.registry import registry
from caramba_core.run.reporter import Reporter
from caramba_core.run.request import Request
from caramba_core.sections import section_data, section_table

__all__ = ["closing_table", "report", "report_sections", "written_manifest"]


def written_manifest(loaded: Loaded, group: Group, folder: Path, *, pinned: str | None) -> str:
    """The manifest as it was run, everything resolved, with this group alone; caramba can run it again from ``folder``.

    Names of files lead from ``folder`` to what they led to from the manifest's own.  ``pinned`` is the teacher's source
    as exactly the content that was read: a hub's address with its commit.
    """
    document = loaded.resolved_group(group.name)
    (written,) = document["groups"]
    if pinned is not None:
        source = pinned if "://" in pinned else _from(folder, loaded.folder, written["teacher"]["source"])
        written["teacher"] = {**written["teacher"], "source": source}
    for which in written.get("data") or {}:
        dataset = getattr(group.data, which)
        names = {} if dataset is None else {str(name): _from(folder, loaded.folder, name) for name in dataset.files()}
        written["data"] = {**written["data"], which: _renamed(written["data"][which], names)}
    return dump(document)


def _from(folder: Path, origin: Path, name: str | Path) -> str:
    """A file's name, relative to ``origin``, as one relative to ``folder``; absolute names stay what they are."""
    path = Path(name).expanduser()
    return str(path) if path.is_absolute() else os.path.relpath(origin / path, folder)


def _renamed(dataset: Any, names: dict[str, str]) -> Any:
    """A dataset's entry with its files' names replaced."""
    if isinstance(dataset, str):
        return names.get(str(Path(dataset)), dataset)
    if isinstance(dataset, Mapping):
        return {key: value if key == "type" else _renamed(value, names) for key, value in dataset.items()}
    return dataset


def report(request: Request, reporter: Reporter) -> None:
    """The closing table of each chosen group, then the tables that plugins add for its runs."""
    for group, summaries in request.summaries().items():
        if summaries:
            closing_table(reporter, f"{request.loaded.manifest.name} / {group}", summaries, request.root / group)
        for summary in summaries:
            for sections in registry().hooks.report_sections(summary=summary):
                for section in sections:
                    reporter.console.print(section_table(section, of=summary["run"]))


def report_sections(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The tables that plugins add to the report of a run, as ``report.json`` holds them."""
    return [
        section_data(section) for sections in registry().hooks.report_sections(summary=summary) for section in sections
    ]


def closing_table(reporter: Reporter, title: str, summaries: list[dict[str, Any]], folder: Path) -> None:
    """Perplexity, cache, parameters, time and place of each run of a group."""
    rows = []
    teacher = next((s for s in summaries if "teacher" in s.get("perplexity", {})), None)
    if teacher is not None:
        cache = teacher["cache_bytes_per_token"].get("teacher")
        rows.append(["teacher", _perplexity(teacher, "teacher"), "1.000", _bytes(cache), "", "", ""])
    for summary in summaries:
        measured = "end" in summary.get("perplexity", {})
        rows.append(
            [
                summary["run"],
                _perplexity(summary, "end") if measured else "",
                f"{summary['perplexity_ratio']['end']:.3f}" if "perplexity_ratio" in summary else "",
                _bytes(summary.get("cache_bytes_per_token", {}).get("student")),
                format_count(summary["parameters"]) if "parameters" in summary else "",
                format_count(summary.get("tokens", 0) or summary.get("calibration_tokens", 0)),
                format_duration(summary["seconds"]),
            ]
        )
    columns = ["", "perplexity", "ratio", "cache B/token", "params", "tokens", "time"]
    reporter.table(title, columns, rows)
    reporter.line(f"artifacts: {folder}/")


def _perplexity(summary: dict[str, Any], name: str) -> str:
    error = summary["perplexity_standard_error"][name]
    return f"{summary['perplexity'][name]:.2f}" + ("" if error is None else f" ± {error:.2f}")


def _bytes(count: float | None) -> str:
    return "" if count is None else f"{count:,.0f}"
