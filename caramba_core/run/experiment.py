"""The runs of a manifest: which are chosen, where they stand, what can be checked before they start, and doing them.

Reading, choosing and :meth:`Experiment.check` import neither torch nor numpy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs
from caramba_document.differences import Change, differences, listed, normal
from caramba_document.problem import Fault
from caramba_document.tree import plain
from caramba_terminal.limit import Limit, Paused
from caramba_terminal.numbers import format_bytes
from caramba_terminal.reporter import Reporter
from caramba_terminal.signals import signals_held
from caramba_terminal.tables import titled_table

from caramba_core.errors import InputError, ManifestError, PluginError
from caramba_core.lowered import blaming, group_path, located
from caramba_core.manifest.load import Loaded
from caramba_core.manifest.schema import Group
from caramba_core.modes import ModeRunner, Run
from caramba_core.places import expanded, named
from caramba_core.plan import Plan, plan_manifest
from caramba_core.plan.data import plan_document
from caramba_core.plugins.registry import registry
from caramba_core.run.directory import RunDirectory, State, step_of
from caramba_core.run.source import commit
from caramba_core.run.written import written_manifest
from caramba_core.teachers import reader

if TYPE_CHECKING:
    from caramba_core.run.context import GroupContext, RunContext

__all__ = ["Experiment"]

_Item = TypeVar("_Item")

_ABSURD: Final = 4
"""Times its device's memory that a run may be predicted to take: a plan is an estimate, and systems swap."""


class Experiment:
    """A manifest that was read, and the runs of it that were chosen: all of them without ``group`` and ``run``.

    :meth:`complete` does what is left of them; its parts are :meth:`unfinished`, :meth:`check`, :meth:`open` and
    :meth:`run`, in this order.  ``output`` is the folder that takes the runs.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        group: str | Sequence[str] | None = None,
        run: str | Sequence[str] | None = None,
        output: Path = Path("runs"),
        reporter: Reporter | None = None,
    ) -> None:
        manifest = loaded.manifest
        if not manifest.groups:
            hint = "add groups: with runs:, or look at the model with caramba compile --print-plan"
            problem = f"the manifest {manifest.name} has no groups: it describes a model, and no run of it"
            raise InputError(problem, hint=hint)
        self.loaded = loaded
        self.manifest = manifest
        self.reporter = reporter or Reporter()
        self.root = output / manifest.name
        self.groups = _named(manifest.groups, "group", group, lambda group: group.name)
        self.chosen = [(one, each) for one in self.groups for each in _named(one.runs, "run", run, lambda run: run.id)]
        self._resume_from: int | None = None
        self._limit = Limit()
        self._opened: dict[str, GroupContext] = {}

    def complete(
        self,
        *,
        resume: bool = False,
        resume_from: int | None = None,
        again: bool = False,
        minutes: float | None = None,
        dry_run: bool = False,
    ) -> None:
        """Check and do the chosen runs that have no result yet; ``dry_run`` checks alone.

        ``resume`` goes on with runs that stopped midway, from their last checkpoint or that of the step
        ``resume_from``; ``again`` does every chosen run anew.
        """
        left = list(self.chosen) if again else self.unfinished(resume=resume)
        if not left:
            self.reporter.line("done already: every run has its result")
            return
        self.check(left)
        self.open(left, starts=not dry_run)
        if dry_run:
            names = ", ".join(f"{group.name}/{run.id}" for group, run in left)
            self.reporter.line(f"everything that can be checked before computing is in order: {names}")
            return
        if again:
            for directory in (self.directory(group, run) for group, run in left):
                if directory.path.exists():
                    directory.set_aside()
        self.run(left, minutes=minutes, resume_from=resume_from)

    # ---------------------------------------------------------------------------------------------- where runs stand

    def directory(self, group: Group, run: Run) -> RunDirectory:
        """The folder of a run."""
        return RunDirectory(self.root / group.name / run.id)

    def document(self, group: Group, run: Run) -> dict[str, Any]:
        """Everything that shapes a run's result: model, teacher, data, the run and all it continues from.

        It is made of what the user wrote, once it is resolved.  Defaults are not part of it, so that a run outlives new
        options of its components.
        """
        found: dict[str, Any] = {}
        current: tuple[Group, Run] | None = (group, run)
        while current is not None:
            owner, one = current
            written = self._written[self.manifest.groups.index(owner)]
            shared = {key: normal(written.get(key)) for key in ("model", "teacher", "data", "eval")}
            of_group = found.setdefault(owner.name, {**shared, "runs": {}})
            of_group["runs"][one.id] = normal(written["runs"][owner.runs.index(one)], one.without_effect)
            current = self.manifest.parent_of(owner, one)
        document: dict[str, Any] = json.loads(json.dumps({"groups": found}))
        return document

    @cached_property
    def _written(self) -> Any:
        return plain(self.loaded.tree)["groups"]

    def unfinished(self, *, resume: bool = False) -> list[tuple[Group, Run]]:
        """The chosen runs that have no result yet.

        Raises :class:`InputError` for a folder that holds a run of another manifest, or one that stopped midway unless
        it may ``resume``.
        """
        for group, run in self.chosen:
            self._require_same(group, run, resume)
        return [(group, run) for group, run in self.chosen if not self._is_done(group, run)]

    def _require_same(self, group: Group, run: Run, resume: bool) -> None:
        directory = self.directory(group, run)
        state = directory.state()
        if state is None:
            if directory.checkpoints():
                problem = f"{directory.path} holds checkpoints, and no state.json that says of which run"
                raise InputError(problem, hint="put state.json back, or start anew with --again")
            return
        changes = self._changes(group, run, state)
        if state.results is None and not (run.resumes and directory.checkpoints()):
            return  # it has nothing to go on from, and begins anew
        done, measures = state.status == "done", all(self._is_evaluation(each, group, run) for each in changes)
        wrong = [each for each in changes if not self._may_change(each, group, run, state)]
        if wrong:
            fewer = any(each.path.endswith(".steps") for each in wrong)
            raise InputError(
                f"{directory.path} holds a run of another version of this manifest:\n    {listed(wrong)}"
                + (f"\n    (it has taken {state.step:,} steps)" if fewer else ""),
                hint="do it anew with --again, give the manifest another name, or choose another folder with --output",
            )
        if resume or (not changes and (done or not run.resumes)):
            return
        stopped = f"{directory.path} holds a run that {'ended' if done else 'stopped'} at step {state.step}"
        stopped += f": {state.error}" if state.error else ""
        stopped += f"\n    {listed(changes)}" if changes else ""
        way_on = "measure it again" if done and measures else "go on from its last checkpoint"
        raise InputError(stopped, hint=f"add --resume to {way_on}, or --again to start anew")

    def _changes(self, group: Group, run: Run, state: State) -> list[Change]:
        """What differs in the manifest from when a run began."""
        return list(differences(state.document, self.document(group, run)))

    def _is_evaluation(self, change: Change, group: Group, run: Run) -> bool:
        """Whether a change is of how runs are measured alone, this one or one that it continues from."""
        current: tuple[Group, Run] | None = (group, run)
        while current is not None:
            owner, one = current
            places = (f"groups.{owner.name}.{key}" for key in ("eval", "data.heldout", f"runs.{one.id}.eval"))
            if not run.heeds_evaluation and any(change.lies_in(place) for place in places):
                return True
            current = self.manifest.parent_of(owner, one)
        return False

    def _may_change(self, change: Change, group: Group, run: Run, state: State) -> bool:
        """Whether a run may go on with a change.

        That is one of how it is measured; or one of its own settings, for what is left of it, and never fewer steps.
        """
        if self._is_evaluation(change, group, run):
            return True
        own = f"groups.{group.name}.runs.{run.id}"
        if run.may_change and change.lies_in(f"{own}.steps") and "steps" in run.may_change:
            more, least = change.after, change.before if state.status == "done" else state.step
            return isinstance(more, int) and isinstance(least, int) and more >= least
        goes_on = state.status != "done" or getattr(run, "steps", state.step) > state.step
        return goes_on and any(change.lies_in(f"{own}.{key}") for key in run.may_change)

    def _has_weights(self, group: Group, run: Run) -> bool:
        """Whether a run's result is what the manifest asks for, however it was measured."""
        state = self.directory(group, run).state()
        if state is None or state.status != "done":
            return False
        return all(self._is_evaluation(each, group, run) for each in self._changes(group, run, state))

    def _is_done(self, group: Group, run: Run) -> bool:
        """Whether a run has its result, and nothing of the manifest asks for more."""
        state = self.directory(group, run).state()
        return state is not None and state.status == "done" and not self._changes(group, run, state)

    # ---------------------------------------------------------------------------------------------------- checking

    @cached_property
    def plans(self) -> dict[str, Plan]:
        """The plan of each chosen group; raises :class:`ManifestError` for models and patterns that cannot be."""
        names = [group.name for group in self.groups]
        plans = plan_manifest(self.loaded, group=names[0] if len(names) == 1 else None)
        return {plan.group: plan for plan in plans if plan.group is not None and plan.group in names}

    def check(self, left: Sequence[tuple[Group, Run]]) -> None:
        """Check what can be checked without computing: models, patterns, teachers' headers, files of data, parents."""
        plans = self.plans
        faults = [fault for group, run in left for fault in self._missing(group, run)]
        if faults:
            raise ManifestError(located(self.loaded, faults))
        for group in self.groups:
            teacher = plans[group.name].teacher
            if teacher is not None and teacher.model is None and "://" not in teacher.source:
                with blaming(self.loaded, *group_path(self.loaded, group), "teacher", "source"):
                    reader(teacher.source).open(teacher.source, self.loaded.folder)  # says what is wrong with it
        for group, run in left:
            parent = self.manifest.parent_of(group, run)
            if parent is not None and parent not in left and not self._has_weights(*parent):
                named = parent[1].id if parent[0] is group else f"{parent[0].name}/{parent[1].id}"
                problem = f"run {group.name}/{run.id} continues from {named}, which has no result yet"
                raise InputError(problem, hint=f"run it first: --group {parent[0].name} --run {parent[1].id}")
            if parent is not None and parent not in left and not self.directory(group, run).checkpoints():
                self._parent(group, run)  # says whose checkpoints are gone

    def _missing(self, group: Group, run: Run) -> Iterator[Fault]:
        """Files of data that a run needs and that are not there."""
        for which in ("train", "heldout") if "data.train" in run.needs else ("heldout",):
            dataset = getattr(group.data, which, None)
            for file in () if dataset is None else dataset.files():
                path = self.loaded.folder / expanded(file)
                if not named(path):
                    yield Fault(
                        path=(*group_path(self.loaded, group), "data", which),
                        message=f"{path} does not exist",
                        hint="names are relative to the manifest's folder, those in a preset to the current one",
                    )

    def open(self, left: Sequence[tuple[Group, Run]], *, starts: bool = True) -> None:
        """Open and check what the runs need: teachers, data, plugins, devices.  Nothing is computed or written.

        ``starts``: whether they are to be done by this call, so that how it was started matters as well.
        """
        told = set[str]()
        for group, run in left:
            self._open(group).check(run, starts=starts)
            self._check_memory(group, run)
            known = None if group.name in told else self._open(group).tokenizer
            if known is not None and known.bos is not None and known.adds_bos:
                token = known.decode([known.bos])
                self.reporter.line(f"{group.name}: texts and prompts begin with {token}: the tokenizer adds BOS")
            told.add(group.name)

    def _check_memory(self, group: Group, run: Run) -> None:
        """Say where a run will take more memory than its device has; refuse what could not be meant."""
        from caramba_core.run.device import memory_of, pick_device

        device = pick_device(run.computation[0])
        needed = next(plan.memory.total for plan in self.plans[group.name].runs if plan.id == run.id)
        there = memory_of(device)
        if not there or needed <= there:
            return
        said = f"run {group.name}/{run.id} takes about {format_bytes(needed)} of memory, and {device.type} has"
        if needed > _ABSURD * there:
            hint = "a smaller batch_size, context or model takes less: caramba compile --print-plan tells what takes it"
            raise InputError(f"{said} {format_bytes(there)}", hint=hint)
        self.reporter.line(f"warning: {said} {format_bytes(there)}")

    # -------------------------------------------------------------------------------------------------------- doing

    def run(
        self, left: Sequence[tuple[Group, Run]], *, minutes: float | None = None, resume_from: int | None = None
    ) -> bool:
        """Do the runs; whether all of them came to their end, and none was stopped by the limit of ``minutes``.

        The first of them goes on from the checkpoint of the step ``resume_from``, if given.  Raises
        :class:`~caramba_terminal.signals.Interrupted` behind a run that a signal stopped, once it is saved.
        """
        self._resume_from = resume_from
        with signals_held() as signals:
            self._limit = Limit(signals, minutes)
            for group, run in left:
                if reason := self._limit.reason:
                    self.reporter.line(f"{group.name}/{run.id} did not begin: {reason}; --resume goes on")
                    return False
                if not self._one(group, run):
                    return False
        return True

    def finished_context(self, group: Group, run: Run) -> RunContext | None:
        """A run's context with its result as the student, or ``None`` where it has none, or not yet."""
        checkpoints = self.directory(group, run).checkpoints()
        if not checkpoints or not self._is_done(group, run):
            return None
        context = self._context(group, run)
        context.resume_from = checkpoints[-1]
        return context

    def _one(self, group: Group, run: Run) -> bool:
        shared, context = self._open(group), self._context(group, run)
        # whatever can still be wrong is, before the run's folder exists: damaged weights leave nothing behind
        if shared.source is not None:
            _ = context.teacher
        inputs, directory = shared.inputs(run), context.directory  # its tokens are open from here on
        parent = self.manifest.parent_of(group, run)
        if parent is not None and parent[0] is group and (before := self.directory(*parent).state()):
            known = _still_meant(before.inputs, self._changes(*parent, before))
            _require_same_inputs(known, inputs, f"the run {parent[1].id} that it continues from")
        if context.parent is not None:
            inputs["parent"] = shared.check_checkpoint(context.parent)["files"]["model.safetensors"]
        plan = plan_document(self.plans[group.name])
        with directory:
            state = directory.state()
            if state is not None and self._is_done(group, run):
                self.reporter.line(f"{run.id}: done by another process")
                return True
            document, checkpoints = self.document(group, run), directory.checkpoints()
            changes = [] if state is None else self._changes(group, run, state)
            worked = state is not None and state.results is not None and (checkpoints or not run.changes_weights)
            if state is not None and (worked or (run.resumes and checkpoints)):
                _require_same_inputs(_still_meant(state.inputs, changes), inputs, "it")
                results = state.results if all(self._is_evaluation(each, group, run) for each in changes) else None
                if checkpoints:
                    checkpoint = self._checkpoint(checkpoints)
                    shared.check_checkpoint(checkpoint)
                    context.resume_at(checkpoint)
                    results = results if checkpoint == checkpoints[-1] else None
                    self.reporter.line(f"{run.id}: going on from {checkpoint}")
                if changes:
                    self.reporter.line(f"changed since it began: {listed(changes)}")
                state = attrs.evolve(state, status="running", document=document, inputs=inputs, error=None)
                state = attrs.evolve(state, changes=[*state.changes, *map(str, changes)], results=results)
            else:
                keeps = state is not None and state.inputs == inputs and not changes
                if changes:
                    self.reporter.line(f"{run.id}: it had no checkpoint and begins anew, changed: {listed(changes)}")
                directory.begin(keeps_measured=keeps)
                seconds = state.seconds if state is not None and keeps else 0.0
                state = State(status="running", document=document, inputs=inputs, seconds=seconds)
            context.took(state.seconds)
            directory.set_state(state)
            pinned = None if shared.source is None else shared.source.pinned
            directory.write_text("manifest.yml", written_manifest(self.loaded, group, directory.path, pinned=pinned))
            directory.write_json("plan.json", plan)
            try:
                done = self._compute(context)
            except BaseException as error:
                if directory.state() is not None and not self._is_done(group, run):  # a published result stays one
                    status = "failed" if isinstance(error, Exception) else "interrupted"
                    directory.update(status=status, error=str(error), seconds=context.seconds)
                if isinstance(error, Exception):
                    context.hooks.run_failed(context=context, error=error)
                raise
            if not done:
                directory.update(status="interrupted", seconds=context.seconds)
                self.reporter.line(f"{run.id} stopped at step {context.step}: {context.pause_reason}; --resume goes on")
        self._limit.signals.raise_pending()
        return done

    def _checkpoint(self, checkpoints: Sequence[Path]) -> Path:
        """The one to go on from: the newest, or once that of a step that was asked for."""
        wanted, self._resume_from = self._resume_from, None
        if wanted is None:
            return checkpoints[-1]
        steps = {step_of(path): path for path in checkpoints}
        if wanted not in steps:
            problem = f"there is no checkpoint of step {wanted} in {checkpoints[-1].parent}"
            raise InputError(problem, expected=", ".join(map(str, steps)))
        return steps[wanted]

    def _compute(self, context: RunContext) -> bool:
        """Do one run and publish its result; whether it came to its end."""
        from caramba_core.run.context import evaluator_classes

        run = context.run
        context.hooks.run_started(context=context)
        evaluators = [evaluator(context) for evaluator in evaluator_classes()] if run.measures else []
        try:
            for evaluator in evaluators:
                _tell(context, evaluator.before())
            results = _results(context)
            for evaluator in evaluators:
                _tell(context, evaluator.after())
        except Paused as paused:
            context.pause_reason = str(paused)
            return False
        summary = {
            "name": self.manifest.name,
            "group": context.group.name,
            "run": run.id,
            "mode": run.mode,
            "seed": run.seed,
            "seconds": round(context.seconds, 3),
            "device": context.device.type,
            "dtype": context.dtype_name,
            **_marks(context),
            **results,
            **{name: entry for evaluator in evaluators for name, entry in evaluator.entries().items()},
            "versions": _versions(),
            "commit": commit(),
        }
        context.directory.write_json("summary.json", summary)
        sections = [one.data() for part in context.hooks.report_sections(summary=summary) for one in part]
        context.directory.write_json("report.json", {"sections": sections})
        context.directory.update(status="done")  # nothing is written behind it
        if run.verify is not None:
            run.verify.require(f"run {run.id}", summary)
        context.hooks.run_finished(context=context, summary=summary)
        return True

    def _context(self, group: Group, run: Run) -> RunContext:
        from caramba_core.run.context import RunContext

        parent, lost = None, None
        try:
            parent = self._parent(group, run)
        except InputError as error:
            if not self.directory(group, run).checkpoints():
                raise
            lost = error  # which matters only where the start is to be had again
        return RunContext(
            shared=self._open(group),
            run=run,
            directory=self.directory(group, run),
            reporter=self.reporter,
            hooks=registry().hooks,
            parent=parent,
            lost_parent=lost,
            limit=self._limit,
        )

    def _parent(self, group: Group, run: Run) -> Path | None:
        """The checkpoint that a run continues from; a run that changes no weights hands on the one before it.

        Raises :class:`InputError` where a run that has changed weights has no checkpoint any more.
        """
        parent = self.manifest.parent_of(group, run)
        if parent is None:
            return None
        directory = self.directory(*parent)
        checkpoints = directory.checkpoints()
        if not checkpoints and parent[1].changes_weights:
            what = f"{group.name}/{run.id} continues from {parent[1].id}, whose checkpoints are gone: {directory.path}"
            raise InputError(what, hint=f"do that one anew: --group {parent[0].name} --run {parent[1].id} --again")
        return checkpoints[-1] if checkpoints else self._parent(*parent)

    def _open(self, group: Group) -> GroupContext:
        from caramba_core.run.context import GroupContext  # torch comes with it: what is wrong was said before

        if group.name not in self._opened:
            self._opened.clear()  # one teacher in memory at a time
            self._opened[group.name] = GroupContext.open(self.loaded, group)
        return self._opened[group.name]

    # ------------------------------------------------------------------------------------------------------ results

    def report(self) -> None:
        """Show the tables of plugins about each chosen group and its finished runs."""
        hooks, show = registry().hooks, self.reporter.console.print
        for group in self.groups:
            summaries = [summary for run in group.runs if (summary := self.directory(group, run).summary())]
            if summaries:
                title, folder = f"{self.manifest.name} / {group.name}", self.root / group.name
                sections = hooks.group_sections(summaries=summaries, folder=folder)
                for section in (one for part in sections for one in part):
                    show(titled_table(f"{title}: {section.title}", section.columns, section.rows))
                if any(summary.get("heldout_in_train") for summary in summaries):
                    what = "held-out tokens are training tokens too (heldout_in_train in summary.json)"
                    self.reporter.line(f"warning: {what}")
                self.reporter.line(f"artifacts: {folder}/")
                for page in sorted(folder.glob("*.html")):  # by a plugin
                    self.reporter.line(f"report: {page}")
            for summary in summaries:
                for section in (one for part in hooks.report_sections(summary=summary) for one in part):
                    show(titled_table(f"{summary['run']}: {section.title}", section.columns, section.rows))

    def verify(self) -> None:
        """Hold the results of the chosen runs against their ``verify:``; raises :class:`VerificationFailed`."""
        for group, run in self.chosen:
            summary = self.directory(group, run).summary()
            if summary is not None and run.verify is not None:
                run.verify.require(f"run {run.id}", summary)


def _results(context: RunContext) -> dict[str, Any]:
    """What the run's mode gives for its summary: kept once its work is done, which may go on to be measured later.

    Raises :class:`Paused` where the work stopped midway.
    """
    from caramba_core.nn.build import load_object

    run, known = context.run, context.directory.begun().results
    if known is not None:
        return known
    context.pause_if_due()
    runner: ModeRunner = load_object(run.builds)(run, context)
    results = runner.run()
    if not results.done:
        raise Paused(context.pause_reason or "its mode stopped midway")
    if run.changes_weights and not context.directory.checkpoints():
        raise PluginError(
            f"run {run.id} ended without a checkpoint, and mode {run.mode} changes weights",
            hint="its runner has to call context.save; this is a fault of the plugin that supplies the mode",
        )
    context.directory.update(results=results.entries, seconds=context.seconds)
    context.limit.worked()
    return results.entries


def _tell(context: RunContext, measured: Iterable[tuple[str, float]]) -> None:
    """Tell plugins of figures as they are measured."""
    for name, figure in measured:
        context.hooks.evaluated(context=context, step=context.step, results={name: figure})


def _still_meant(inputs: Mapping[str, str], changes: Sequence[Change]) -> dict[str, str]:
    """Hashes of what a run read, without those of held-out tokens in whose place the manifest names others by now."""
    others = any(".data.heldout" in change.path for change in changes)
    return {name: digest for name, digest in inputs.items() if not (others and name == "heldout")}


def _require_same_inputs(before: Mapping[str, str], now: Mapping[str, str], whose: str) -> None:
    """Raise where what a run reads is not what it, or the run before it, has read."""
    other = [name for name in before if name in now and now[name] != before[name]]
    if other:
        words = {"train": "data.train", "heldout": "data.heldout", "parent": "the result that it continues from"}
        named = " and ".join(words.get(name, name) for name in other)
        problem = f"{named}: not what {whose} has read: the content has changed"
        raise InputError(problem, hint="put the file back, or start anew with --again")


def _named(
    items: Sequence[_Item], what: str, wanted: str | Sequence[str] | None, name: Callable[[_Item], str]
) -> list[_Item]:
    """Those with a wanted name, all where none is wanted."""
    names = [wanted] if isinstance(wanted, str) else list(wanted or [])
    there = {name(item) for item in items}
    for one in names:
        if one not in there:
            raise InputError(f"there is no {what} {one!r}", expected=", ".join(map(name, items)))
    return [item for item in items if not names or name(item) in names]


def _marks(context: RunContext) -> dict[str, Any]:
    """What a reader of the results has to know of its texts, and of settings that did not hold from start to end."""
    marks: dict[str, Any] = {}
    if context.tokenizer is not None:
        marks["tokenizer_adds_bos"] = context.tokenizer.adds_bos
    if "data.train" in context.run.needs and context.shared.heldout_in_train:
        marks["heldout_in_train"] = context.shared.heldout_in_train
    if changes := context.directory.begun().changes:
        marks["changed_on_the_way"] = changes
    return marks


def _versions() -> dict[str, str]:
    plugins = {plugin.name: plugin.version for plugin in registry().plugins.values()}
    return {**plugins, **{name: version(name) for name in ("torch", "numpy", "safetensors")}}
