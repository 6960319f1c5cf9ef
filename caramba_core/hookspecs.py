"""Every hook that a plugin can implement: when it runs, where, what it may change, and what an exception in it does.

A plugin implements hooks in the module that its entry point in the group ``caramba`` names::

    from caramba_core.hookspecs import hookimpl

    @hookimpl
    def step_finished(step, metrics):
        print(step, metrics["loss"])

An implementation takes only the arguments that it uses.  Implementations run in the order of their distributions'
names, ``@hookimpl(tryfirst=True)`` and ``@hookimpl(trylast=True)`` before and after the others.  Hooks run at the
boundaries of steps, never inside ``forward``, and get numbers that are on the CPU: none of them makes a device wait.

Of several processes that train together (``torchrun`` numbers them in the variable ``RANK``), :data:`EVERY_PROCESS`
hooks run in each, all others in the first one only.

An exception in a :data:`OBSERVERS` hook is reported once, that plugin's hook is not called again, and the run goes on:
a tracker that lost its network must not end hours of training.  In every other hook it stops the command with exit code
2 and names the plugin.  A :class:`~caramba_core.errors.CarambaError` is meant: it always stops the run with its own
exit code (except in ``run_failed``, where the first error counts).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs
import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    from caramba_core.graph import Graph
    from caramba_core.nn.language_model import LanguageModel
    from caramba_core.plan import Plan
    from caramba_core.run.context import RunContext

__all__ = [
    "EVERY_PROCESS",
    "OBSERVERS",
    "SECTIONS",
    "PluginInfo",
    "Section",
    "checked_sections",
    "hookimpl",
    "hookspec",
    "implementations",
]

hookspec = pluggy.HookspecMarker("caramba")
hookimpl = pluggy.HookimplMarker("caramba")

EVERY_PROCESS: Final = frozenset({"caramba_plugin_info", "graph_lowered", "run_started", "model_built", "run_failed"})
OBSERVERS: Final = frozenset(
    {"step_finished", "evaluated", "checkpoint_saved", "run_finished", "report_sections", "run_failed"}
)
SECTIONS: Final = frozenset({"plan_sections", "report_sections"})


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
    """A table that a plugin adds to a plan or a report: a title, column names, and rows of text and numbers.

    Raises :class:`ValueError` for a row of another length than the columns and :class:`TypeError` for a cell that is
    neither text nor a number nor ``None``.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]

    def __attrs_post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"the section {self.title!r} has {len(self.columns)} columns and a row of {len(row)}")
            for cell in row:
                if not isinstance(cell, str | int | float | None):
                    raise TypeError(f"the section {self.title!r} has a cell that is a {type(cell).__name__}: {cell!r}")


def implementations(module: Any) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Each hook implementation of a module: its name there, the hook's name, and its options."""
    manager = pluggy.PluginManager(hookimpl.project_name)
    for name in dir(module):
        options = manager.parse_hookimpl_opts(module, name)
        if options is not None:
            yield name, options["specname"] or name, options


def checked_sections(result: Any) -> Sequence[Section]:
    """What an implementation of ``plan_sections`` or ``report_sections`` gave, if it is a list of sections or nothing.

    Raises :class:`TypeError` otherwise.
    """
    if result is None:
        return ()
    if not isinstance(result, list | tuple):
        raise TypeError(f"it gives a {type(result).__name__}, not a list of caramba_core.hookspecs.Section")
    for section in result:
        if not isinstance(section, Section):
            raise TypeError(f"a section is a {type(section).__name__}, not a caramba_core.hookspecs.Section")
    return result


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
    """Look at a model's graph, once a group, before anything is planned or built.

    Runs in every command that plans: ``compile``, ``graph``, and ``run`` with runs left to do.  Must not import torch.
    The graph is frozen; a hook may refuse it by raising :class:`~caramba_core.errors.CarambaError`.
    """


@hookspec
def plan_sections(plan: Plan) -> Sequence[Section]:
    """Add tables to a plan, after the core's own.

    Runs only where a plan is shown or written: for ``caramba compile --print-plan``, for ``--json``, and for the
    ``plan.json`` of a run, once for each before the run's folder is made.  Must not import torch.  The plan is frozen.
    """
    raise NotImplementedError


@hookspec
def report_sections(summary: Mapping[str, Any]) -> Sequence[Section]:
    """Add tables to the report of a finished run, after the core's own.

    Runs when a run has finished, for its ``report.json``, and for each finished run of the table that closes
    ``caramba run``.  ``summary`` is the content of the run's ``summary.json``; changes to it have no effect.
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
    ask for an early end with ``context.request_stop(reason)``: the run is then done behind this step, or the one after
    (on CUDA numbers come a step late), with a last checkpoint, its measurement and its summary, as at its last step.
    """


@hookspec
def evaluated(context: RunContext, step: int, results: Mapping[str, float]) -> None:
    """Held-out tokens were measured after ``step`` optimizer steps of this run.

    ``results`` has one perplexity a call: ``perplexity_teacher`` and ``perplexity_start`` (step 0), ``perplexity`` of
    the student amid the training, ``perplexity_end``.  What an earlier run measured already is not measured again.  May
    ask for an early end with ``context.request_stop(reason)``, which changes nothing behind the last step.
    """


@hookspec
def checkpoint_saved(context: RunContext, path: Path) -> None:
    """A checkpoint folder was published whole; it must not be changed.  Copying it elsewhere is what this is for."""


@hookspec
def run_finished(context: RunContext, summary: Mapping[str, Any]) -> None:
    """A run ended well: ``summary.json`` is published and meets ``verify:``.  Changes to ``summary`` have no effect."""


@hookspec
def run_failed(context: RunContext, error: BaseException) -> None:
    """A run ends with an error, which is of the class CarambaError where its cause is known; what was published stays.

    Runs before the error is reported; not for an interrupt, nor for a failure before ``run_started``.
    """
