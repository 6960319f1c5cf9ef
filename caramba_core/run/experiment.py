"""Running a manifest: check everything first, then one run after the other."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import attrs

from caramba_core.component import evolve
from caramba_core.errors import CarambaError, InputError, VerificationFailed
from caramba_core.manifest import Loaded, load_manifest
from caramba_core.manifest.schema import Group, Run
from caramba_core.plugins.manager import hooks
from caramba_core.plugins.registry import registry
from caramba_core.run.context import GroupContext, RunContext
from caramba_core.run.device import pick_device
from caramba_core.run.directory import RunDirectory, State
from caramba_core.run.modes import Mode, Results
from caramba_core.run.opening import open_group
from caramba_core.run.records import closing_table, written_manifest
from caramba_core.run.reporter import Reporter

__all__ = ["Choice", "Experiment"]


@attrs.frozen(kw_only=True)
class Choice:
    """Which part of a manifest to run, and how: ``None`` means all of it."""

    group: str | None = None
    run: str | None = None
    resume: bool = False
    output: Path = Path("runs")
    minutes: float | None = None


class Experiment:
    """A manifest's groups and runs; :meth:`check` before :meth:`run`."""

    def __init__(self, source: str, overrides: Sequence[str], choice: Choice, reporter: Reporter) -> None:
        self.loaded: Loaded = load_manifest(source, overrides=overrides, fetch=True)
        self.choice = choice
        self.reporter = reporter
        self.deadline = None if choice.minutes is None else time.monotonic() + 60 * choice.minutes
        self.root = choice.output / self.loaded.manifest.name
        self.groups = _chosen(self.loaded.manifest.groups, choice.group, "group", lambda group: group.name)
        self.runs = {group.name: _chosen(group.runs, choice.run, "run", lambda run: run.id) for group in self.groups}
        self._opened: dict[str, GroupContext] = {}

    # ----------------------------------------------------------------------------------------------------- before

    def unfinished(self) -> list[tuple[Group, Run]]:
        """The chosen runs that have no result yet.

        Raises :class:`InputError` for a folder that holds a run of another manifest, or one that stopped midway unless
        resuming was asked for.
        """
        left = []
        for group in self.groups:
            for run in self.runs[group.name]:
                state = self._directory(group.name, run.id).state()
                self._require_same(group, run, state)
                if state is None or state.status != "done":
                    left.append((group, run))
        return left

    def check(self, left: Sequence[tuple[Group, Run]]) -> None:
        """Open and check what the runs need: teachers, data, plugins, devices.  Nothing is computed or written."""
        for group, run in left:
            shared = self._open(group)
            shared.check(run)
            parent = _parent_of(group, run)
            if parent is not None and (group, parent) not in left and not self._is_done(group.name, parent.id):
                raise InputError(
                    f"run {group.name}/{run.id} continues from {parent.id}, which has no result yet",
                    hint=f"run it first: leave out --run, or --run {parent.id}",
                )

    # -------------------------------------------------------------------------------------------------------- run

    def run(self, left: Sequence[tuple[Group, Run]]) -> bool:
        """Do the runs; whether all of them came to their end (a time limit or a signal may stop one midway)."""
        return all(self._one(group, run) for group, run in left)

    def summaries(self) -> dict[str, list[dict[str, Any]]]:
        """The results of the chosen groups' finished runs, by group, in the order of the manifest."""
        found: dict[str, list[dict[str, Any]]] = {}
        for group in self.groups:
            results = (self._directory(group.name, run.id).summary() for run in group.runs)
            found[group.name] = [summary for summary in results if summary is not None]
        return found

    def finished_context(self, group: Group, run: Run) -> RunContext | None:
        """A run's context with its result as the student, or ``None`` while it has no result."""
        if not self._is_done(group.name, run.id):
            return None
        context = self._context(group, run, self._directory(group.name, run.id))
        context.resume_from = self._result_of(group.name, run.id)
        return context

    def report(self) -> None:
        """The closing table."""
        for group, summaries in self.summaries().items():
            if summaries:
                closing_table(self.reporter, f"{self.loaded.manifest.name} / {group}", summaries, self.root / group)

    def _one(self, group: Group, run: Run) -> bool:
        self._load_teacher(group, run)
        with self._directory(group.name, run.id) as directory:
            state = directory.state()
            fingerprint = _fingerprint(group, run)
            context = self._context(group, run, directory)
            if state is not None and directory.checkpoints() and run.mode == "train":
                context.resume_from = directory.checkpoints()[-1]
                self.reporter.line(f"{run.id}: going on from {context.resume_from}")
            directory.set_state(
                State(status="running", fingerprint=fingerprint, step=0 if state is None else state.step)
            )
            directory.write_text("manifest.yml", written_manifest(self.loaded, group))
            directory.write_json("plan.json", context.shared.plan(run))
            try:
                results = self._compute(context, run)
            except BaseException as error:
                status: Literal["failed", "interrupted"] = "failed" if isinstance(error, Exception) else "interrupted"
                before = directory.state()
                step = 0 if before is None else before.step
                directory.set_state(State(status=status, fingerprint=fingerprint, step=step, error=str(error)))
                if isinstance(error, Exception):
                    context.hooks.run_failed(context=context, error=error)
                raise
            if not results.done:
                before = directory.state()
                assert before is not None
                directory.set_state(attrs.evolve(before, status="interrupted"))
                self.reporter.line(f"{run.id} stopped at step {before.step}: {context.stop_reason}; --resume goes on")
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
            context.hooks.run_finished(context=context, summary=summary)
            _verify(run, summary)
        return results

    # ---------------------------------------------------------------------------------------------------- helpers

    def _load_teacher(self, group: Group, run: Run) -> None:
        """Load the teacher before the run's folder exists: damaged weights leave nothing behind."""
        shared = self._open(group)
        if shared.source is not None:
            shared.teacher(pick_device(run.device if run.train is None else run.train.device))

    def _context(self, group: Group, run: Run, directory: RunDirectory) -> RunContext:
        parent = _parent_of(group, run)
        return RunContext(
            shared=self._open(group),
            run=run,
            directory=directory,
            reporter=self.reporter,
            hooks=hooks(),
            parent=None if parent is None else self._result_of(group.name, parent.id),
            deadline=self.deadline,
        )

    def _open(self, group: Group) -> GroupContext:
        if group.name not in self._opened:
            self._opened.clear()  # one teacher in memory at a time
            self._opened[group.name] = open_group(self.loaded, group)
        return self._opened[group.name]

    def _directory(self, group: str, run: str) -> RunDirectory:
        return RunDirectory(self.root / group / run)

    def _is_done(self, group: str, run: str) -> bool:
        state = self._directory(group, run).state()
        return state is not None and state.status == "done"

    def _result_of(self, group: str, run: str) -> Path:
        return self._directory(group, run).checkpoints()[-1]

    def _require_same(self, group: Group, run: Run, state: State | None) -> None:
        if state is None:
            return
        folder = self.root / group.name / run.id
        if state.fingerprint != _fingerprint(group, run):
            raise InputError(
                f"{folder} holds a run of another version of this manifest",
                hint="remove that folder, give the manifest another name, or choose another folder with --output",
            )
        stopped = state.status != "done" and self._directory(group.name, run.id).checkpoints()
        if stopped and not self.choice.resume:
            raise InputError(
                f"{folder} holds a run that stopped at step {state.step}" + (f": {state.error}" if state.error else ""),
                hint="add --resume to go on from its last checkpoint, or remove the folder to start afresh",
            )


def _chosen(items: Sequence[Any], wanted: str | None, what: str, name: Any) -> list[Any]:
    if wanted is None:
        return list(items)
    chosen = [item for item in items if name(item) == wanted]
    if not chosen:
        raise InputError(f"there is no {what} {wanted!r}", expected=", ".join(name(item) for item in items))
    return chosen


def _parent_of(group: Group, run: Run) -> Run | None:
    """The run that this one continues: the one it names, or the one before it."""
    ids = [other.id for other in group.runs]
    if run.from_ is not None:
        return group.runs[ids.index(run.from_)]
    place = ids.index(run.id)
    return group.runs[place - 1] if place else None


def _fingerprint(group: Group, run: Run) -> str:
    """Identifies everything that shapes a run's result: model, teacher, data, the run and all it continues from."""
    chain = []
    current: Run | None = run
    while current is not None:
        train = current.train and evolve(current.train, device="auto", checkpoint_every=None, evaluate_every=None)
        chain.append(evolve(current, train=train, device="auto", verify=None))
        current = _parent_of(group, current)
    described = repr((group.model, group.teacher, group.data, group.eval, chain))
    return hashlib.sha256(described.encode()).hexdigest()


def _verify(run: Run, summary: dict[str, Any]) -> None:
    wanted = None if run.verify is None else run.verify.perplexity_ratio_at_most
    if wanted is None:
        return
    if "perplexity_ratio" not in summary:
        raise CarambaError(
            f"run {run.id}: verify.perplexity_ratio_at_most needs a teacher and data.heldout",
        )
    found = summary["perplexity_ratio"]["end"]
    if found > wanted:
        raise VerificationFailed(
            f"run {run.id}: the perplexity is {found:.4f} times the teacher's",
            expected=f"at most {wanted}",
            hint="the artifacts are kept; train longer, or give the cache more values",
        )


def _versions() -> dict[str, str]:
    plugins = {plugin.name: plugin.version for plugin in registry().plugins.values()}
    return {**plugins, **{name: version(name) for name in ("torch", "numpy", "safetensors")}}
