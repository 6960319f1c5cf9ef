"""Removing runs: never one that a process works on, and never a part of one."""

from __future__ import annotations

import shutil
from pathlib import Path

from caramba_core.errors import InputError
from caramba_core.run.directory import RunDirectory
from caramba_plugins_report.records import runs_under, state_of

__all__ = ["continued_by", "remove_run", "require_removable"]


def require_removable(path: Path) -> None:
    """Raise :class:`InputError` for a run that a process holds, and for a link to a run."""
    if path.is_symlink():
        raise InputError(f"{path} is a link to {path.resolve()}", hint="name the run's own folder, or remove the link")
    with RunDirectory(path):
        pass


def remove_run(path: Path) -> None:
    """Remove a run's folder while nobody else can take it: it is renamed first, so that no part of it looks whole."""
    with RunDirectory(path):
        hidden = path.with_name(f".{path.name}.removed")
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
        shutil.rmtree(hidden)


def continued_by(path: Path) -> list[Path]:
    """The other runs of the same manifest that continue from a run."""
    group, run = path.resolve().parts[-2:]
    found = []
    for other in runs_under(path.resolve().parent.parent):
        state = state_of(other)
        if other != path.resolve() and not isinstance(state, str):
            before = state.document.get("groups", {}).get(group, {})
            if isinstance(before, dict) and run in before.get("runs", {}):
                found.append(other)
    return found
