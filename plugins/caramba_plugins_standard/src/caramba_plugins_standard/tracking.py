"""The hooks that feed the trackers of a run; light: a tracker's library is imported once a run names it."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from caramba_core.hookspecs import hookimpl
from caramba_plugins_standard.modes import Train

if TYPE_CHECKING:
    from caramba_core.run.context import RunContext
    from caramba_plugins_standard.trackers import Tracker, TrackerRunner

__all__ = ["checkpoint_saved", "evaluated", "run_failed", "run_finished", "run_started", "step_finished"]

_open: Final[list[tuple[Tracker, TrackerRunner]]] = []
"""Those of the run that goes on: a process has one at a time."""


@hookimpl
def run_started(context: RunContext) -> None:
    """Open the trackers that the run names; one that cannot be opened ends the command."""
    _close(None)  # of a run that was stopped
    trackers = context.run.train.trackers if isinstance(context.run, Train) else ()
    for tracker in trackers:
        _open.append((tracker, tracker.start(context)))


@hookimpl
def step_finished(context: RunContext, step: int, metrics: Mapping[str, float]) -> None:
    """Hand the numbers of a step on."""
    values = {name: value for name, value in metrics.items() if name != "step"}
    _each(lambda runner: runner.log(step, values), context)


@hookimpl
def evaluated(context: RunContext, step: int, results: Mapping[str, float]) -> None:
    """Hand what was measured on."""
    _each(lambda runner: runner.log(step, results), context)


@hookimpl
def checkpoint_saved(context: RunContext) -> None:
    """What is saved here is kept there."""
    _each(lambda runner: runner.flush(), context)


@hookimpl
def run_finished(context: RunContext, summary: Mapping[str, Any]) -> None:
    """Close, with the result."""
    _close(summary, context)


@hookimpl
def run_failed(context: RunContext) -> None:
    """Close without one."""
    _close(None, context)


def _each(act: Callable[[TrackerRunner], None], context: RunContext | None) -> None:
    """Let every tracker act; one that fails is left out from here on, and the run goes on."""
    for one in list(_open):
        try:
            act(one[1])
        except Exception as error:  # noqa: BLE001 - of a network, a server, a full disk: none of the run's
            _open.remove(one)
            if context is not None:
                said = f"{type(error).__name__}: {error}".partition("\n")[0]
                context.reporter.line(f"warning: {type(one[0]).__name__} takes no more numbers: {said}")


def _close(summary: Mapping[str, Any] | None, context: RunContext | None = None) -> None:
    _each(lambda runner: runner.end(summary), context)
    _open.clear()


atexit.register(_close, None)
