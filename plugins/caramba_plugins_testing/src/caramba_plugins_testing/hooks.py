"""Checks of a hook module: its hooks are real ones, and a whole run passes through them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pluggy

from caramba_core.hookspecs import checked_sections
from caramba_core.plugins.manager import registered_alone
from caramba_core.run.context import RunContext
from caramba_plugins_testing.case import CheckFailed
from caramba_plugins_testing.runs import small_run

__all__ = ["play_failure", "play_run"]


def play_run(module: ModuleType, folder: Path, *, losses: Iterable[float] = (3.0, 2.0, 1.5, 1.25, 1.0)) -> RunContext:
    """Take a hook module through the life of a run in ``folder`` that takes one step a loss.

    Faults are not caught as they are in a real run: whatever a hook raises comes out.  The run ends early where a hook
    asks for it; ``context.stop_reason`` then says why.  Returns the context; ``context.directory.path`` is its folder.
    """
    hook, context = _begin(module, folder)
    losses = tuple(losses)
    step = 0
    for step, loss in enumerate(losses, start=1):
        numbers = {"step": step, "tokens": 128 * step, "lr": 1e-3 * step, "loss": loss, "gradient_norm": 1.0}
        hook.step_finished(context=context, step=step, metrics=numbers)
        if context.stop_reason is not None:
            break
    hook.evaluated(context=context, step=step, results={"perplexity_end": 2.0})
    checkpoint = context.directory.path / "checkpoints" / f"step_{step:06d}"
    checkpoint.mkdir(parents=True)
    hook.checkpoint_saved(context=context, path=checkpoint)
    summary = {"name": "kit", "group": "kit", "run": "small", "perplexity": {"start": 4.0, "end": 2.0}, "seconds": 1.0}
    hook.run_finished(context=context, summary=summary)
    given = {
        "report_sections": hook.report_sections(summary=summary),
        "group_sections": hook.group_sections(summaries=[summary], folder=context.directory.path.parent),
    }
    for name, parts in given.items():
        for sections in parts:
            try:
                checked_sections(sections)
            except TypeError as error:
                raise CheckFailed(f"{name}: {error}") from error
    return context


def play_failure(module: ModuleType, folder: Path) -> RunContext:
    """Take a hook module through a run that fails after its first step."""
    hook, context = _begin(module, folder)
    hook.step_finished(context=context, step=1, metrics={"step": 1, "tokens": 128, "lr": 1e-3, "loss": 3.0})
    hook.run_failed(context=context, error=RuntimeError("made up"))
    return context


def _begin(module: ModuleType, folder: Path) -> tuple[pluggy.HookRelay, RunContext]:
    hook = registered_alone(module)
    context = small_run(folder)
    hook.graph_lowered(graph=context.graph)
    hook.run_started(context=context)
    hook.model_built(context=context, model=context.student)
    return hook, context
