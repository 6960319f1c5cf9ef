"""The public names of every distribution, as ``docs/public.md`` lists them; ``scripts/pages.py`` writes the page."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Final

__all__ = ["COMMANDS", "PAGE", "PLUGINS", "listed", "refreshed"]

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "public.md"
PLUGINS: Final = "For plugins"
COMMANDS: Final = "For commands and tools"

_ROW: Final = re.compile(r"^\| `([\w.]+)` \| ([^|]+) \|[^|]*\|$")


def listed(page: str) -> dict[tuple[str, str], list[str]]:
    """Public modules by distribution and section; a distribution without sections is all for plugins."""
    found: dict[tuple[str, str], list[str]] = {}
    distribution, section = "", PLUGINS
    for line in page.splitlines():
        if line.startswith("## "):
            distribution, section = line[3:], PLUGINS
        elif line.startswith("### "):
            section = line[4:]
        elif row := _ROW.match(line):
            found.setdefault((distribution, section), []).append(row[1])
    return found


def refreshed(page: str) -> str:
    """The page with the names that its modules export now."""
    return "\n".join(_ROW.sub(_row, line) for line in page.split("\n"))


def _row(row: re.Match[str]) -> str:
    names = ", ".join(f"`{name}`" for name in import_module(row[1]).__all__)
    return f"| `{row[1]}` | {row[2]} | {names} |"
