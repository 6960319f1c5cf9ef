"""What the shell offers where a command takes runs: their names under ``runs/``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from caramba_plugins_standard.opening import find_runs

__all__ = ["folders_of_runs", "run_folders"]

_RUNS: Final = Path("runs")


def run_folders(parameters: Mapping[str, Any], begun: str) -> Iterable[str]:
    """``NAME/GROUP/RUN`` of every run."""
    return _within(find_runs(_RUNS), begun)


def folders_of_runs(parameters: Mapping[str, Any], begun: str) -> Iterable[str]:
    """``NAME``, ``NAME/GROUP`` and ``NAME/GROUP/RUN``."""
    runs = find_runs(_RUNS)
    above = {folder for run in runs for folder in run.parents if _RUNS in folder.parents}
    return _within([*sorted(above), *runs], begun)


def _within(folders: Iterable[Path], begun: str) -> list[str]:
    """Folders by their names in ``runs``, with ``runs/`` in front where the user has begun so."""
    place = Path() if begun.startswith("runs") else _RUNS
    names = (folder.relative_to(place).as_posix() for folder in folders)
    return [name for name in names if name.startswith(begun)]
