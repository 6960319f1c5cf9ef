"""Running a manifest: check everything first, then one run after the other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import attrs

from caramba_core.manifest.schema import Group, Run
from caramba_core.plan.data import plan_document
from caramba_core.plugins.manager import hooks
from caramba_core.plugins.registry import registry
from caramba_core.run.context import GroupContext, RunContext
from caramba_core.run.determinism import allow_determinism
from caramba_core.run.device import pick_device
from caramba_core.run.directory import RunDirectory, State
from caramba_core.run.modes import Mode, Results
from caramba_core.run.opening import open_group
from caramba_core.run.records import report_sections, written_manifest
from caramba_core.run.reporter import Reporter
from caramba_core.run.request import Choice, Request, fingerprint, parent_of, verify

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
        self.request.check(left)
        for group, run in left:
            self._open(group).check(run)

    # -------------------------------------------------------------------------------------------------------- run

    def run(self, left: Sequence[tuple[Group, Run]]) -> bool:
        """Do the runs; whether all of them came to their end (a time limit or a signal may stop one midway)."""
        if any(run.train is not None and run.train.deterministic for _, run in left):
            allow_determinism()
        return all(self._one(group, run) for group, run in left)

    def finished_context(self, group: Group, run: Run) -> RunContext | None:
        """A run's context with its result as the student, or ``None`` where it has none, or not yet."""
        directory = self.request.directory(group.name, run.id)
        if not self.request.is_done(group.name, run.id) or not directory.checkpoints():
            return None
        context = self._context(group, run, directory)
        context.resume_from = self._result_of(group.name, run.id)
        return context

    def _one(self, group: Group, run: Run) -> bool:
        self._load_teacher(group, run)
        self._check_checkpoints(group, run)
        plan = plan_document(self.request.plans[group.name])
        with self.request.directory(group.name, run.id) as directory:
            state = directory.state()
            identity = fingerprint(self.loaded.manifest.groups, group, run)
            context = self._context(group, run, directory)
            if run.task == "train" and state is not None and directory.checkpoints():
                context.resume_from = directory.checkpoints()[-1]
                self.reporter.line(f"{run.id}: going on from {context.resume_from}")
            elif run.task != "train":
                directory.drop_checkpoints()  # of a run that ended before its result was measured: it is done again
            directory.set_state(State(status="running", fingerprint=identity, step=0 if state is None else state.step))
            directory.write_text("manifest.yml", self._manifest(context))
            directory.write_json("plan.json", plan)
            try:
                results = self._compute(context, run)
            except BaseException as error:
                before = directory.state()
                assert before is not None
                if before.status != "done":  # a result that was published stays one, whatever is raised behind it
                    status: Literal["failed", "interrupted"] = (
                        "failed" if isinstance(error, Exception) else "interrupted"
                    )
                    directory.set_state(attrs.evolve(before, status=status, error=str(error)))
                if isinstance(error, Exception):
                    context.hooks.run_failed(context=context, error=error)
                raise
            if not results.done:
                before = directory.state()
                assert before is not None
                directory.set_state(attrs.evolve(before, status="interrupted"))
                self.reporter.line(f"{run.id} stopped at step {before.step}: {context.pause_reason}; --resume goes on")
                return False
            return True

    def _compute(self, context: RunContext, run: Run) -> Results:
        began = time.perf_counter()
        context.hooks.run_started(context=context)
        mode: Mode = registry().load(registry().find(["mode"], run.mode))()
        results = mode.run(context)
        if results.done:
            summary = {
                "name": self.loaded.manifest.name,
                "group": context.group.name,
                "run": run.id,
                "mode": run.mode,
                "seed": run.seed,
                "seconds": round(time.perf_counter() - began, 3),
                "device": context.device.type,
                "dtype": context.dtype_name,
                **results.entries,
                "versions": _versions(),
            }
            context.directory.write_json("summary.json", summary)
            state = context.directory.state()
            assert state is not None
            context.directory.set_state(attrs.evolve(state, status="done"))
            verify(run, summary)
            context.hooks.run_finished(context=context, summary=summary)
            context.directory.write_json("report.json", {"sections": report_sections(summary)})
        return results

    # ---------------------------------------------------------------------------------------------------- helpers

    def _load_teacher(self, group: Group, run: Run) -> None:
        """Load the teacher before the run's folder exists: damaged weights leave nothing behind."""
        shared = self._open(group)
        if shared.source is not None:
            shared.teacher(pick_device(run.device if run.train is None else run.train.device))

    def _manifest(self, context: RunContext) -> str:
        source = context.shared.source
        pinned = None if source is None else source.pinned
        return written_manifest(self.loaded, context.group, context.directory.path, pinned=pinned)

    def _check_checkpoints(self, group: Group, run: Run) -> None:
        """What the run goes on from speaks of the same tokens as its data."""
        parent = parent_of(self.loaded.manifest.groups, group, run)
        own = self.request.directory(group.name, run.id).checkpoints()
        before = own or ([] if parent is None else [self._result_of(parent[0].name, parent[1].id)])
        if before:
            shared = self._open(group)
            shared.check(run)  # its tokens are open from here on
            shared.check_checkpoint(before[-1])

    def _context(self, group: Group, run: Run, directory: RunDirectory) -> RunContext:
        parent = parent_of(self.loaded.manifest.groups, group, run)
        return RunContext(
            shared=self._open(group),
            run=run,
            directory=directory,
            reporter=self.reporter,
            hooks=hooks(),
            parent=None if parent is None else self._result_of(parent[0].name, parent[1].id),
            deadline=self.deadline,
        )

    def _open(self, group: Group) -> GroupContext:
        if group.name not in self._opened:
            self._opened.clear()  # one teacher in memory at a time
            self._opened[group.name] = open_group(self.loaded, group)
        return self._opened[group.name]

    def _result_of(self, group: str, run: str) -> Path:
        return self.request.directory(group, run).checkpoints()[-1]


def _versions() -> dict[str, str]:
    plugins = {plugin.name: plugin.version for plugin in registry().plugins.values()}
    return {**plugins, **{name: version(name) for name in ("torch", "numpy", "safetensors")}}
