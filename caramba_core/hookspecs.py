"""Every hook that a plugin can implement: when it runs, where, what it may change, and what an exception in it does.

A plugin implements hooks in the module that its entry point in the group ``caramba`` names::

    from caramba_core.hookspecs import hookimpl

    @hookimpl
    def step_finished(step, metrics):
        print(step, metrics["loss"])

An implementation takes only the arguments that it uses.  Implementations run in the order of their distributions'
names, ``@hookimpl(tryfirst=True)`` and ``@hookimpl(trylast=True)`` before and after the others.  Hooks run at the
boundaries of steps, never inside ``forward``, and get numbers that are on the CPU: none of them makes a device wait.

Of several processes that train together, :data:`EVERY_PROCESS` hooks run in each, all others in the first one only.

An exception in a :data:`OBSERVERS` hook is reported once, that plugin's hook is not called again, and the run goes on:
a tracker that lost its network must not end hours of training.  In every other hook it stops the command with exit code
2 and names the plugin.  A :class:`~caramba_core.errors.CarambaError` is meant: it always stops the run with its own
exit code (except in ``run_failed``, where the first error counts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs
import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    from caramba_core.graph import Graph
    from caramba_core.nn.language_model import LanguageModel
    from caramba_core.plan import Plan
    from caramba_core.run.context import RunContext

__all__ = ["EVERY_PROCESS", "OBSERVERS", "PluginInfo", "Section", "hookimpl", "hookspec"]

hookspec = pluggy.HookspecMarker("caramba")
hookimpl = pluggy.HookimplMarker("caramba")

EVERY_PROCESS: Final = frozenset({"caramba_plugin_info", "graph_lowered", "run_started", "model_built", "run_failed"})
OBSERVERS: Final = frozenset({"step_finished", "evaluated", "checkpoint_saved", "run_finished", "run_failed"})


@attrs.frozen(kw_only=True)
class PluginInfo:
    """What a plugin says of itself.

    ``summary`` is one line; ``documentation`` an address; ``extras`` names, for each optional extra of the
    distribution, the modules that it brings (``{"gguf": ("gguf",)}``): ``caramba plugins show`` says which are there.
    """

    summary: str
    documentation: str | None = None
    extras: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Section:
    """A table that a plugin adds to a plan or a report: a title, column names, and rows of text and numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]


# ------------------------------------------------------------------------------------------------ about the plugin


@hookspec
def caramba_plugin_info() -> PluginInfo:
    """Say what the plugin is.

    Runs for ``caramba plugins show`` and ``plugins check``.  Changes nothing.  An exception marks the plugin as broken.
    """
    raise NotImplementedError


# ------------------------------------------------------------------------------------------------ graphs and plans


@hookspec
def graph_lowered(graph: Graph) -> None:
    """Look at a model's graph, once a group, before anything is planned or built; no torch is needed or imported.

    The graph is frozen; a hook may refuse it by raising :class:`~caramba_core.errors.CarambaError`.
    """


@hookspec
def plan_sections(plan: Plan) -> Sequence[Section]:
    """Add tables to ``caramba compile --print-plan``, after the core's own.

    Runs only where a plan is shown; must not import torch.  The plan is frozen.
    """
    raise NotImplementedError


@hookspec
def report_sections(summary: Mapping[str, Any]) -> Sequence[Section]:
    """Add tables to the report of a finished run, after the core's own.

    ``summary`` is the content of the run's ``summary.json``; it is not changed.
    """
    raise NotImplementedError


# ------------------------------------------------------------------------------------------------ the life of a run


@hookspec
def run_started(context: RunContext) -> None:
    """A run begins: its folder exists and is locked, nothing is built yet.

    Runs once for each call of ``caramba run``, also when the run resumes.  May write into the run's folder.
    """


@hookspec
def model_built(context: RunContext, model: LanguageModel) -> None:
    """The student of a training run stands ready, before its first step.

    Its weights and its strategy are in place.  May look and may register what watches gradients; must not replace
    modules or change what trains, which the plan describes and the optimizer holds already.
    """


@hookspec
def step_finished(context: RunContext, step: int, metrics: Mapping[str, float]) -> None:
    """Steps were taken; ``step`` is the number of optimizer steps so far.

    Runs where the run logs, with the numbers that it logs (``loss``, ``lr``, ...), which are synchronized already.  May
    ask for an early end with ``context.request_stop(reason)``: the run then stops behind this step, with a checkpoint.
    """


@hookspec
def evaluated(context: RunContext, step: int, results: Mapping[str, float]) -> None:
    """Held-out tokens were measured after ``step`` steps; ``results`` has a number for each model that was.

    May ask for an early end with ``context.request_stop(reason)``.
    """


@hookspec
def checkpoint_saved(context: RunContext, path: Path) -> None:
    """A checkpoint folder was published whole; it must not be changed.  Copying it elsewhere is what this is for."""


@hookspec
def run_finished(context: RunContext, summary: Mapping[str, Any]) -> None:
    """A run ended well and ``summary.json`` is published; changes to ``summary`` have no effect."""


@hookspec
def run_failed(context: RunContext, error: BaseException) -> None:
    """A run ends with an error; what was published stays.  Runs before the error is reported, not for an interrupt."""
