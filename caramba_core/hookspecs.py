"""Every hook that a plugin can implement: when it runs, where, what it may change, and what an exception in it does.

A plugin implements hooks in the module that its entry point in the group ``caramba`` names::

    from caramba_core.hookspecs import hookimpl

    @hookimpl
    def step_finished(step, metrics):
        print(step, metrics["loss"])

An implementation takes only the arguments that it uses.  Implementations run in the order of their distributions'
names; those with ``@hookimpl(tryfirst=True)`` run before, those with ``@hookimpl(trylast=True)`` after all others, in
the same order.  Hooks run between optimizer steps, never inside ``forward``, and their numbers are on the CPU already:
no hook makes a device synchronize.

Of several processes that do a run together the first one calls the hooks.  Hooks are plain functions, no coroutines and
no generators.  What :data:`QUIET` hooks print goes to stderr: stdout may hold data for a program.

An exception in an :data:`OBSERVERS` hook (``SystemExit``, too) is reported once, that hook of the plugin is not called
again, and the run continues: a tracker that lost its network must not end hours of training.  In every other hook it
ends the command with exit code 2 and names the plugin.  A :class:`~caramba_core.errors.CarambaError` is deliberate: it
ends the run from any hook, with its own exit code (except in ``run_failed``, where the error that failed the run
counts).  Ctrl-C stays Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs
import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    from caramba_core.graph import Graph
    from caramba_core.nn.language_model import LanguageModel
    from caramba_core.plan import Plan
    from caramba_core.run.context import RunContext

__all__ = ["OBSERVERS", "QUIET", "SECTIONS", "Section", "checked_sections", "hookimpl", "hookspec", "implementations"]

hookspec = pluggy.HookspecMarker("caramba")
hookimpl = pluggy.HookimplMarker("caramba")

_REPORTS: Final = ("report_sections", "group_sections")
OBSERVERS: Final = frozenset(
    ("step_finished", "evaluated", "checkpoint_saved", "run_finished", *_REPORTS, "run_failed")
)
SECTIONS: Final = frozenset(("plan_sections", *_REPORTS))
QUIET: Final = SECTIONS | {"graph_lowered"}


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

    def data(self) -> dict[str, Any]:
        """The table as plain data."""
        return {"title": self.title, "columns": list(self.columns), "rows": [list(row) for row in self.rows]}


def implementations(module: Any) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Each hook implementation of a module: its name there, the hook's name, and its options."""
    manager = pluggy.PluginManager(hookimpl.project_name)
    for name in dir(module):
        options = manager.parse_hookimpl_opts(module, name)
        if options is not None:
            yield name, options["specname"] or name, options


def checked_sections(result: Any) -> Sequence[Section]:
    """What an implementation of one of the :data:`SECTIONS` hooks gave, if it is a list of sections or nothing.

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


# ------------------------------------------------------------------------------------------------ graphs and plans


@hookspec
def graph_lowered(graph: Graph) -> None:
    """Inspect a model's graph, once per group, before anything is planned or built.

    Runs in every command that plans: ``compile``, ``graph``, and ``run`` with runs left to do.  Must not import torch.
    The graph is frozen; a hook may reject it by raising :class:`~caramba_core.errors.CarambaError`.
    """


@hookspec
def plan_sections(plan: Plan) -> Sequence[Section]:
    """Add tables to a plan, after the core's own.

    Runs only where a plan is shown or written: for ``caramba compile --print-plan``, for ``--json``, and for the
    ``plan.json`` of each run, before the run's folder is made.  Must not import torch.  The plan is frozen.
    """
    raise NotImplementedError


@hookspec
def show_plans(plans: Sequence[Plan], full: bool) -> None:
    """Show the plans of a manifest's groups on the terminal.

    Runs for ``caramba compile --print-plan``; ``full`` asks for repeated blocks to be spelled out.  Must not import
    torch.
    """


@hookspec
def report_sections(summary: Mapping[str, Any]) -> Sequence[Section]:
    """Add tables to the report of a finished run.

    Runs when a run has finished, for its ``report.json``, and for each finished run of what closes ``caramba run``.
    ``summary`` is the content of the run's ``summary.json``; changes to it have no effect.
    """
    raise NotImplementedError


@hookspec
def group_sections(summaries: Sequence[Mapping[str, Any]], folder: Path) -> Sequence[Section]:
    """Add tables about the finished runs of a group to what closes ``caramba run``, before those of each run.

    ``summaries`` are their ``summary.json`` in the manifest's order, ``folder`` holds the runs.  Must not import torch.
    """
    raise NotImplementedError


# ------------------------------------------------------------------------------------------------ the life of a run


@hookspec(firstresult=True)
def follow(load: Callable[[], Any]) -> bool | None:
    """``caramba run`` begins, with the manifest that ``load()`` reads.

    Of several processes (``WORLD_SIZE``) all but the first (``RANK`` 0) do their part of its runs in here, and get
    ``True`` once that one ends; others get ``False``, or nothing.
    """


@hookspec
def run_started(context: RunContext) -> None:
    """A run begins: its folder exists and is locked, nothing is built yet.

    Runs once for each call of ``caramba run``, also when the run resumes.  May write into the run's folder.
    """


@hookspec
def model_built(context: RunContext, model: LanguageModel) -> None:
    """The student of a training run is ready, before its first step.

    Its weights are loaded and its strategy is set up.  May inspect the model and register hooks on gradients; must not
    replace modules or change which parameters train, because plan and optimizer have them already.
    """


@hookspec
def step_finished(context: RunContext, step: int, metrics: Mapping[str, float]) -> None:
    """Metrics were logged; ``step`` is the number of optimizer steps so far.

    Runs where the run logs, with the metrics that it logs (``loss``, ``lr``, ...).  May ask for an early end with
    ``context.request_stop(reason)``: the run then ends after this step or the next (on CUDA metrics arrive one step
    late), with a last checkpoint, its measurement and its summary, as at its last step.
    """


@hookspec
def evaluated(context: RunContext, step: int, results: Mapping[str, float]) -> None:
    """Held-out tokens were measured after ``step`` optimizer steps of this run.

    ``results`` has one perplexity per call: ``perplexity_teacher`` and ``perplexity_start`` (step 0), ``perplexity`` of
    the student during training, ``perplexity_end``.  What an earlier run measured is not measured again.  May ask for
    an early end with ``context.request_stop(reason)``, which has no effect after the last step.
    """


@hookspec
def checkpoint_saved(context: RunContext, path: Path) -> None:
    """A checkpoint folder is complete, of some steps ago perhaps; it may be copied elsewhere, and not be changed."""


@hookspec
def run_finished(context: RunContext, summary: Mapping[str, Any]) -> None:
    """A run succeeded: ``summary.json`` is written and meets ``verify:``.  Changes to ``summary`` have no effect."""


@hookspec
def run_failed(context: RunContext, error: BaseException) -> None:
    """A run failed with ``error``, a CarambaError where the cause is known; what was published stays.

    Runs before the error is reported; not for an interrupt, nor for a failure before ``run_started``.
    """
