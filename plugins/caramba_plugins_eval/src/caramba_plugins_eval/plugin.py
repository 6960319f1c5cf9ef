"""The table of metrics in reports of runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from caramba_core.hookspecs import Section, hookimpl
from caramba_plugins_eval.results import figure_section

__all__ = ["report_sections"]


@hookimpl
def report_sections(summary: Mapping[str, Any]) -> list[Section]:
    """The figures of a run that measured metrics."""
    return [figure_section(summary["metrics"])] if summary.get("metrics") else []
