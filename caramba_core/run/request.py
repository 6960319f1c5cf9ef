"""What a call of ``caramba run`` asks for, and everything of it that can be checked before torch is imported."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import attrs

from caramba_core.document.problem import Fault
from caramba_core.document.tree import plain
from caramba_core.errors import CarambaError, InputError, ManifestError, VerificationFailed
from caramba_core.loading import open_source
from caramba_core.lowered import group_path, located
from caramba_core.manifest.load import Loaded, load_manifest
from caramba_core.manifest.schema import Group
from caramba_core.modes import Run
from caramba_core.plan import Plan, plan_manifest
from caramba_core.run.directory import RunDirectory, State

__all__ = ["Choice", "Request", "parent_of", "verify"]

_Item = TypeVar("_Item")


@attrs.frozen(kw_only=True)
class Choice:
    """Which part of a manifest to run, and how: ``None`` means all of it."""

    group: str | None = None
    run: str | None = None
    resume: bool = False
    output: Path = Path("runs")
    minutes: float | None = None


class Request:
    """A manifest that was read, the runs of it that were chosen, and where they stand.  Light: no torch, no numpy."""

    def __init__(self, loaded: Loaded, choice: Choice) -> None:
        if not loaded.manifest.groups:
            raise InputError(
                f"the manifest {loaded.manifest.name} has no groups: it describes a model, and no run of it",
                hint="add groups: with runs:, or look at the model with caramba compile --print-plan",
            )
        self.loaded = loaded
        self.choice = choice
        self.root = choice.output / loaded.manifest.name
        self.groups = _chosen(loaded.manifest.groups, choice.group, "group", lambda group: group.name)
        self.runs = {group.name: _chosen(group.runs, choice.run, "run", lambda run: run.id) for group in self.groups}

    @classmethod
    def read(cls, source: str, overrides: Sequence[str], choice: Choice) -> Request:
        """Read a manifest's file or preset; a teacher that its model is taken from is fetched."""
        return cls(load_manifest(source, overrides=overrides, fetch=True), choice)

    # ---------------------------------------------------------------------------------------------- where runs stand

    def directory(self, group: str, run: str) -> RunDirectory:
        """The folder of a run."""
        return RunDirectory(self.root / group / run)

    def fingerprint(self, group: Group, run: Run) -> str:
        """Identifies everything that shapes a run's result: model, teacher, data, the run and all it continues from.

        It is made of what the user wrote, once it is resolved.  Defaults are not part of it, so that a run outlives new
        options of its components.
        """
        groups, chain = self.loaded.manifest.groups, list[Any]()
        previous: Group | None = None
        current: tuple[Group, Run] | None = (group, run)
        while current is not None:
            owner, one = current
            written = self._data["groups"][groups.index(owner)]
            if owner is not previous:
                chain.append([written.get(key) for key in ("model", "teacher", "data", "eval")])
            chain.append(_without(written["runs"][owner.runs.index(one)], one.without_effect))
            previous, current = owner, parent_of(groups, owner, one)
        return hashlib.sha256(json.dumps(_normal(chain), sort_keys=True).encode()).hexdigest()

    @cached_property
    def _data(self) -> dict[str, Any]:
        data: dict[str, Any] = plain(self.loaded.tree)
        return data

    def is_done(self, group: str, run: str) -> bool:
        """Whether a run has its result."""
        state = self.directory(group, run).state()
        return state is not None and state.status == "done"

    def unfinished(self) -> list[tuple[Group, Run]]:
        """The chosen runs that have no result yet.

        Raises :class:`InputError` for a folder that holds a run of another manifest, or one that stopped midway unless
        resuming was asked for.
        """
        left = []
        for group in self.groups:
            for run in self.runs[group.name]:
                state = self.directory(group.name, run.id).state()
                self._require_same(group, run, state)
                if state is None or state.status != "done":
                    left.append((group, run))
        return left

    def summaries(self) -> dict[str, list[dict[str, Any]]]:
        """The results of the chosen groups' finished runs, by group, in the order of the manifest."""
        found: dict[str, list[dict[str, Any]]] = {}
        for group in self.groups:
            results = (self.directory(group.name, run.id).summary() for run in group.runs)
            found[group.name] = [summary for summary in results if summary is not None]
        return found

    def verify(self) -> None:
        """Hold the results of the chosen runs against their ``verify:``; raises :class:`VerificationFailed`."""
        for group in self.groups:
            for run in self.runs[group.name]:
                summary = self.directory(group.name, run.id).summary()
                if summary is not None:
                    verify(run, summary)

    def _require_same(self, group: Group, run: Run, state: State | None) -> None:
        if state is None:
            return
        folder = self.root / group.name / run.id
        if state.fingerprint != self.fingerprint(group, run):
            raise InputError(
                f"{folder} holds a run of another version of this manifest",
                hint="remove that folder, give the manifest another name, or choose another folder with --output",
            )
        stopped = run.resumes and state.status != "done" and self.directory(group.name, run.id).checkpoints()
        if stopped and not self.choice.resume:
            raise InputError(
                f"{folder} holds a run that stopped at step {state.step}" + (f": {state.error}" if state.error else ""),
                hint="add --resume to go on from its last checkpoint, or remove the folder to start afresh",
            )

    # ---------------------------------------------------------------------------------------------------- checking

    @cached_property
    def plans(self) -> dict[str, Plan]:
        """The plan of each chosen group; raises :class:`ManifestError` for models and patterns that cannot be."""
        plans = plan_manifest(self.loaded, group=self.choice.group)
        return {group.name: plan for group, plan in zip(self.groups, plans, strict=True)}

    def check(self, left: Sequence[tuple[Group, Run]]) -> None:
        """Check what can be checked without computing: models, patterns, teachers' headers, files of data, parents."""
        processes = os.environ.get("WORLD_SIZE", "1")
        if processes not in ("", "1"):
            raise InputError(
                f"caramba runs in one process, and {processes} were started (WORLD_SIZE)", hint="leave torchrun out"
            )
        plans = self.plans
        faults = [fault for group, run in left for fault in self._missing(group, run)]
        if faults:
            raise ManifestError(located(self.loaded, faults))
        for group in self.groups:
            absent = group.teacher is not None and plans[group.name].teacher_model is None
            if absent and group.teacher is not None and "://" not in group.teacher.source:
                open_source(group.teacher.source, self.loaded.folder)  # says what is wrong with it
        for group, run in left:
            parent = parent_of(self.loaded.manifest.groups, group, run)
            if parent is not None and parent not in left and not self.is_done(parent[0].name, parent[1].id):
                named = parent[1].id if parent[0] is group else f"{parent[0].name}/{parent[1].id}"
                raise InputError(
                    f"run {group.name}/{run.id} continues from {named}, which has no result yet",
                    hint=f"run it first: --group {parent[0].name} --run {parent[1].id}",
                )

    def _missing(self, group: Group, run: Run) -> Iterator[Fault]:
        """Files of data that a run needs and that are not there."""
        for which in ("train", "heldout") if "data.train" in run.needs else ("heldout",):
            dataset = getattr(group.data, which, None)
            for file in () if dataset is None else dataset.files():
                path = self.loaded.folder / file.expanduser()
                if not path.exists():
                    yield Fault(
                        path=(*group_path(self.loaded, group), "data", which),
                        message=f"{path} does not exist",
                        hint="names are relative to the manifest's folder, those in a preset to the current one",
                    )


def parent_of(groups: Sequence[Group], group: Group, run: Run) -> tuple[Group, Run] | None:
    """The run that this one continues, with its group: one it names (``RUN``, ``GROUP/RUN``), or the one before."""
    if run.from_ is None:
        place = [other.id for other in group.runs].index(run.id)
        return (group, group.runs[place - 1]) if place else None
    name, _, id_ = run.from_.rpartition("/")
    owner = next((other for other in groups if other.name == name), group)
    return owner, next(other for other in owner.runs if other.id == id_)


def _without(data: Mapping[str, Any], keys: Collection[str], prefix: str = "") -> dict[str, Any]:
    """A mapping without some keys, dotted where they are nested."""
    return {
        key: _without(value, keys, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in data.items()
        if f"{prefix}{key}" not in keys
    }


def _normal(value: Any) -> Any:
    """One spelling for what a manifest may write in two: ``{type: cosine}`` and ``cosine``, ``1.0`` and ``1``."""
    if isinstance(value, Mapping):
        return value["type"] if value.keys() == {"type"} else {key: _normal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_normal(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def verify(run: Run, summary: dict[str, Any]) -> None:
    """Hold a run's result against its ``verify:``; raises :class:`VerificationFailed`."""
    wanted = None if run.verify is None else run.verify.perplexity_ratio_at_most
    if wanted is None:
        return
    if "perplexity_ratio" not in summary:
        raise CarambaError(f"run {run.id}: verify.perplexity_ratio_at_most needs a teacher and data.heldout")
    found = summary["perplexity_ratio"]["end"]
    if found > wanted:
        raise VerificationFailed(
            f"run {run.id}: the perplexity is {found:.4f} times the teacher's",
            expected=f"at most {wanted}",
            hint="the artifacts are kept; train longer, or give the cache more values",
        )


def _chosen(items: Sequence[_Item], wanted: str | None, what: str, name: Callable[[_Item], str]) -> list[_Item]:
    if wanted is None:
        return list(items)
    chosen = [item for item in items if name(item) == wanted]
    if not chosen:
        raise InputError(f"there is no {what} {wanted!r}", expected=", ".join(name(item) for item in items))
    return chosen
