"""A plugin that finds a learning rate: a schedule that sweeps it, and hooks that watch what the loss does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

from caramba_plugins_standard.training import Schedule

from caramba_core.components import component, option
from caramba_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from caramba_core.run.context import RunContext

TOO_HIGH = 1.5
"""A loss that is this many times the lowest one ends the sweep."""

_seen: dict[str, list[tuple[float, float]]] = {}
"""Learning rate and loss of every step, by run."""


@component
class Sweep(Schedule):
    """From ``10^-decades`` of the learning rate to all of it, by the same factor every step."""

    decades: float = option(default=4.0, help="orders of magnitude to sweep", above=0.0)

    def factor(self, step: int, steps: int) -> float:
        """Multiplier of the learning rate."""
        return float(10 ** (-self.decades * (1 - step / max(1, steps - 1))))


def _sweeps(context: RunContext) -> bool:
    training = getattr(context.run, "train", None)
    return training is not None and isinstance(training.schedule, Sweep)


@hookimpl
def run_started(context: RunContext) -> None:
    """Begin anew."""
    _seen[str(context.directory.path)] = []


@hookimpl
def step_finished(context: RunContext, metrics: Mapping[str, float]) -> None:
    """Take the step down; once the loss explodes, write what was found and ask for the end."""
    if not _sweeps(context):
        return
    seen = _seen[str(context.directory.path)]
    seen.append((metrics["lr"], metrics["loss"]))
    lowest = min(loss for _, loss in seen)
    if metrics["loss"] > TOO_HIGH * lowest:
        context.request_stop(f"the loss explodes at a learning rate of {metrics['lr']:.1e}")
    falls = [(later[1] - sooner[1], later[0]) for sooner, later in pairwise(seen)]
    if falls:
        found = {"suggested_lr": min(falls)[1], "steps": len(seen)}
        (context.directory.path / "lr_finder.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
