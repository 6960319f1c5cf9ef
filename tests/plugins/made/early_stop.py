"""A plugin that ends a run whose loss has stopped falling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from caramba_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from caramba_core.run.context import RunContext

PATIENCE = 3
"""Steps without a new lowest loss that end a run."""

_lowest: dict[str, tuple[float, int]] = {}
"""The lowest loss of each run, and the step that had it."""


@hookimpl
def run_started(context: RunContext) -> None:
    """Begin anew."""
    _lowest.pop(str(context.directory.path), None)


@hookimpl
def step_finished(context: RunContext, step: int, metrics: Mapping[str, float]) -> None:
    """Ask for the end after ``PATIENCE`` steps without a new lowest loss."""
    run = str(context.directory.path)
    lowest, at = _lowest.get(run, (float("inf"), 0))
    if metrics["loss"] < lowest:
        _lowest[run] = (metrics["loss"], step)
    elif step - at >= PATIENCE:
        context.request_stop(f"the loss has not fallen below {lowest:.4f} for {PATIENCE} steps")
