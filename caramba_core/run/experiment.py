"""Running a manifest: check everything first, then one run after the other."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from caramba_core.errors import PluginError
from caramba_core.manifest.schema import Group
from caramba_core.modes import ModeRunner, Run
from caramba_core.nn.build import load_object
from caramba_core.plan.data import plan_document
from caramba_core.plugins.registry import registry
from caramba_core.run.context import GroupContext, RunContext, device_of, evaluator_classes
from caramba_core.run.directory import RunDirectory, State
from caramba_core.run.opening import open_group
from caramba_core.run.records import report_sections, written_manifest
from caramba_core.run.reporter import Reporter
from caramba_core.run.request import Choice, Request, parent_of, verify

__all__ = ["Choice", "Experiment", "Request"]


class Experiment:
    """A manifest's groups and runs; :meth:`check` before :meth:`run`."""

    def __init__(self, request: Request, reporter: Reporter) -> None:
        self.request = request
        self.loaded = request.loaded
        self.groups = request.groups
        self.reporter = reporter
        minutes = request.choice.minutes
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self._opened: dict[str, GroupContext] = {}

    # ----------------------------------------------------------------------------------------------------- before

    def unfinished(self) -> list[tuple[Group, Run]]:
        """The chosen runs that have no result yet; see :meth:`Request.unfinished`."""
        return self.request.unfinished()

    def check(self, left: Sequence[tuple[Group, Run]]) -> None:
        """Open and check what the runs need: teachers, data, plugins, devices.  Nothing is computed or written."""
        told: GroupContext | None = None
        self.request.check(left)
        for group, run in left:
            shared = self._open(group)
            shared.check(run)
            if shared.tokenizer is not None and shared.tokenizer.adds_bos and shared is not told:
                token = shared.tokenizer.decode([shared.tokenizer.bos or 0])
                self.reporter.line(f"{group.name}: texts and prompts begin with {token}, as the tokenizer's BOS")
            told = shared

    # -------------------------------------------------------------------------------------------------------- run

    def run(self, left: Sequence[tuple[Group, Run]]) -> bool:
        """Do the runs; whether all of them came to their end (a time limit or a signal may stop one midway)."""
        return all(self._one(group, run) for group, run in left)

    def finished_context(self, group: Group, run: Run) -> RunContext | None:
        """A run's context with its result as the student, or ``None`` where it has none, or not yet."""
        directory = self.request.directory(group.name, run.id)
        if not self.request.is_done(group.name, run.id) or not directory.checkpoints():
            return None
        context = self._context(group, run, directory)
        context.resume_from = directory.checkpoints()[-1]
        return context

    def _one(self, group: Group, run: Run) -> bool:
        shared, directory = self._open(group), self.request.directory(group.name, run.id)
        # whatever can still be wrong is, before the run's folder exists: damaged weights leave nothing behind
        if shared.source is not None:
            shared.teacher(device_of(run))
        context = self._context(group, run, directory)
        if run.resumes and directory.checkpoints():
            context.resume_from = directory.checkpoints()[-1]
            self.reporter.line(f"{run.id}: going on from {context.resume_from}")
        before = context.resume_from or context.parent
        if before is not None:
            shared.check(run)  # its tokens are open from here on
            shared.check_checkpoint(before)
        plan = plan_document(self.request.plans[group.name])
        with directory:
            step = 0 if (state := directory.state()) is None else state.step
            identity = self.request.fingerprint(group, run)
            pinned = None if shared.source is None else shared.source.pinned
            directory.set_state(State(status="running", fingerprint=identity, step=step))
            directory.write_text("manifest.yml", written_manifest(self.loaded, group, directory.path, pinned=pinned))
            directory.write_json("plan.json", plan)
            try:
                done = self._compute(context)
            except BaseException as error:
                if directory.status != "done":  # a result that was published stays one, whatever is raised behind it
                    directory.set_status("failed" if isinstance(error, Exception) else "interrupted", str(error))
                if isinstance(error, Exception):
                    context.hooks.run_failed(context=context, error=error)
                raise
            if not done:
                directory.set_status("interrupted")
                self.reporter.line(f"{run.id} stopped at step {context.step}: {context.pause_reason}; --resume goes on")
            return done

    def _compute(self, context: RunContext) -> bool:
        """Do one run and publish its result; whether it came to its end."""
        run, began = context.run, time.perf_counter()
        context.hooks.run_started(context=context)
        evaluators = [evaluator(context) for evaluator in evaluator_classes()] if run.measures else []
        for evaluator in evaluators:
            self._tell(context, evaluator.before())
        runner: ModeRunner = load_object(run.builds)(run, context)
        results = runner.run()
        if not results.done:
            return False
        if run.changes_weights and not context.directory.checkpoints():
            raise PluginError(
                f"run {run.id} ended without a checkpoint, and mode {run.mode} changes weights",
                hint="its runner has to call context.save; this is a fault of the plugin that supplies the mode",
            )
        for evaluator in evaluators:
            self._tell(context, evaluator.after())
        summary = {
            "name": self.loaded.manifest.name,
            "group": context.group.name,
            "run": run.id,
            "mode": run.mode,
            "seed": run.seed,
            "seconds": round(time.perf_counter() - began, 3),
            "device": context.device.type,
            "dtype": context.dtype_name,
            **_marks(context),
            **results.entries,
            **{name: entry for evaluator in evaluators for name, entry in evaluator.entries().items()},
            "versions": _versions(),
        }
        context.directory.write_json("summary.json", summary)
        context.directory.set_status("done")
        verify(run, summary)
        context.hooks.run_finished(context=context, summary=summary)
        context.directory.write_json("report.json", {"sections": report_sections(summary)})
        return True

    def _tell(self, context: RunContext, measured: Iterable[tuple[str, float]]) -> None:
        """Tell plugins of figures as they are measured."""
        for name, figure in measured:
            context.hooks.evaluated(context=context, step=context.step, results={name: figure})

    # ---------------------------------------------------------------------------------------------------- helpers

    def _context(self, group: Group, run: Run, directory: RunDirectory) -> RunContext:
        return RunContext(
            shared=self._open(group),
            run=run,
            directory=directory,
            reporter=self.reporter,
            hooks=registry().hooks,
            parent=self._parent(group, run),
            deadline=self.deadline,
        )

    def _parent(self, group: Group, run: Run) -> Path | None:
        """The checkpoint that a run continues from; a run that changes no weights hands on the one before it."""
        parent = parent_of(self.loaded.manifest.groups, group, run)
        if parent is None:
            return None
        checkpoints = self.request.directory(parent[0].name, parent[1].id).checkpoints()
        return checkpoints[-1] if checkpoints else self._parent(*parent)

    def _open(self, group: Group) -> GroupContext:
        if group.name not in self._opened:
            self._opened.clear()  # one teacher in memory at a time
            self._opened[group.name] = open_group(self.loaded, group)
        return self._opened[group.name]


def _marks(context: RunContext) -> dict[str, Any]:
    """What a reader of the results has to know of the texts."""
    marks: dict[str, Any] = {}
    if context.tokenizer is not None:
        marks["tokenizer_adds_bos"] = context.tokenizer.adds_bos
    if "data.train" in context.run.needs and context.shared.heldout_in_train:
        marks["heldout_in_train"] = context.shared.heldout_in_train
    return marks


def _versions() -> dict[str, str]:
    plugins = {plugin.name: plugin.version for plugin in registry().plugins.values()}
    return {**plugins, **{name: version(name) for name in ("torch", "numpy", "safetensors")}}
