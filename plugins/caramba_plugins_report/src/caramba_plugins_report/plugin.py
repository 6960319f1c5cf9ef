"""The page about a group's runs that ``caramba run`` writes beside them, as ``report.html``."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from caramba_core.errors import CarambaError
from caramba_core.hookspecs import Section, hookimpl

if TYPE_CHECKING:
    from caramba_core.run.context import RunContext

__all__ = ["VARIABLE", "group_sections", "run_failed", "run_finished"]

VARIABLE: Final = "CARAMBA_RUN_REPORT"
"""Set to ``0``, runs write no page."""

_PAGE: Final = "report.html"
_log = logging.getLogger(__name__)


@hookimpl
def run_finished(context: RunContext) -> None:
    """Behind the last run of a group: another group may take hours, or fail."""
    if context.run.id == context.group.runs[-1].id:
        _warned(_fault_in_writing(context.directory.path.parent), context)


@hookimpl
def run_failed(context: RunContext) -> None:
    """What was computed before a run failed can be looked at."""
    _warned(_fault_in_writing(context.directory.path.parent), context)


@hookimpl
def group_sections(folder: Path) -> list[Section]:
    """No table: what closes ``caramba run`` names the page, which is written here where it is not up to date."""
    fault = "" if _is_current(folder) else _fault_in_writing(folder)
    if fault:
        _log.warning("warning: %s", fault)
    return []


def _fault_in_writing(folder: Path) -> str:
    """Write the page about the runs in a folder; why that could not be, if so."""
    if not _is_wanted():
        return ""
    from caramba_plugins_report.page import report_of  # matplotlib comes with it

    try:
        report_of(folder).write(folder / _PAGE)
    except (CarambaError, OSError) as error:
        return f"no report was written to {folder / _PAGE}: {error}"
    return ""


def _warned(fault: str, context: RunContext) -> None:
    if fault:
        context.reporter.line(f"warning: {fault}")


def _is_wanted() -> bool:
    return os.environ.get(VARIABLE) != "0"


def _is_current(folder: Path) -> bool:
    """Whether the page was written behind every file about a run in the folder."""
    page = folder / _PAGE
    written = page.stat().st_mtime_ns if page.is_file() else 0
    return all(file.stat().st_mtime_ns <= written for file in folder.glob("*/*.json"))
