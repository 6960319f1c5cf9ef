"""The tables that plugins add to plans and reports, as data."""

from __future__ import annotations

from typing import Any

from caramba_core.hookspecs import Section

__all__ = ["section_data"]


def section_data(section: Section) -> dict[str, Any]:
    """A plugin's table as plain data."""
    return {"title": section.title, "columns": list(section.columns), "rows": [list(row) for row in section.rows]}
