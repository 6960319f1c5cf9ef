"""Rules between the parts of a manifest: names that must differ, runs that continue others, what a mode needs.

They read plain data, so that they are checked even where another part of the manifest is wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import attrs

from caramba_core.errors import PluginError
from caramba_core.manifest.faults import Fault
from caramba_core.manifest.problem import Path
from caramba_core.manifest.schema import Manifest
from caramba_core.plugins.registry import Registry
from caramba_core.suggestions import listing, nearest, suggestion

__all__ = ["rule_faults", "teacher_faults"]

_NEEDS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "convert": (("teacher",), ("data", "train")),
    "train": (("run", "steps"), ("run", "train"), ("data", "train")),
    "eval": (("data", "heldout"),),
    "generate": (("run", "prompt"),),
}
"""What a mode needs: keys of the run, or of its group."""


def rule_faults(data: Mapping[str, Any], known: Sequence[Fault], registry: Registry) -> list[Fault]:
    """What breaks a rule; ``known`` is what structuring found: a misspelt key is not reported as missing, too."""
    groups = data.get("groups")
    if not isinstance(groups, list):
        return []
    misspelt = {fault.path[:-1] for fault in known if fault.at == "key"}
    rules = _Rules(groups, misspelt, registry)
    return [*rules.names(), *(fault for index in range(len(groups)) for fault in rules.group(index))]


def teacher_faults(manifest: Manifest) -> Iterator[Fault]:
    """Strategies that learn from a teacher, in groups without one."""
    for i, group in enumerate(manifest.groups):
        for j, run in enumerate(group.runs):
            if run.train is not None and run.train.strategy.needs_teacher and group.teacher is None:
                yield Fault(
                    path=("groups", i, "runs", j, "train", "strategy"),
                    message="this strategy learns from a teacher, and the group has none",
                    hint="add teacher: {source: ...} to the group",
                )


@attrs.frozen
class _Rules:
    groups: list[Any]
    misspelt: Collection[Path]
    registry: Registry

    def names(self) -> Iterator[Fault]:
        """Groups share a folder of runs, so their names must differ even where capitals do not count."""
        yield from _twice(self.groups, "name", "group", ("groups",))

    def group(self, index: int) -> Iterator[Fault]:
        """The rules of one group and its runs."""
        group = self.groups[index]
        runs = group.get("runs") if isinstance(group, dict) else None
        if not isinstance(runs, list):
            return
        path: Path = ("groups", index)
        yield from _twice(runs, "id", "run", (*path, "runs"))
        for j, run in enumerate(runs):
            if isinstance(run, dict):
                yield from self._continued(index, j, run)
                yield from self._mode(group, run, path, (*path, "runs", j))

    def _registered(self, kind: str, name: str, path: Path) -> Iterator[Fault]:
        """A name that no installed plugin gives this kind."""
        try:
            self.registry.find((kind,), name)
        except PluginError as error:
            known = [entry.name for entry in self.registry.entries(kind)]
            if name in known or ":" in name:  # ambiguous, or of a plugin that is missing or cannot be used
                yield Fault(path=path, message=error.message, expected=error.expected, hint=error.hint)
                return
            near = () if self.registry.supplier((kind,), name) else nearest(name, known)
            yield Fault(
                path=path,
                message=f"there is no {kind} {name!r}{suggestion(near)}",
                expected=None if near else f"one of {listing(known)}",
                hint=None if near else error.hint,
            )

    def _mode(self, group: dict[str, Any], run: dict[str, Any], path: Path, run_path: Path) -> Iterator[Fault]:
        mode = run.get("mode")
        if not isinstance(mode, str):
            return
        yield from self._registered("mode", mode, (*run_path, "mode"))
        needs = _NEEDS.get(mode.rpartition(":")[2], ())
        places = {"run": (run, run_path), "data": (_inside(group, "data"), (*path, "data"))}
        lacking = []
        for place, *rest in needs:
            holder, where = places.get(str(place), (group, path))
            key = str(rest[0] if rest else place)
            if holder is None or where in self.misspelt or (place == "data" and path in self.misspelt):
                continue
            if holder.get(key) is None:
                prefix = "data." if place == "data" else ""
                lacking.append(key if place == "run" else f"{prefix}{key} in its group")
        if lacking:
            yield Fault(path=(*run_path, "mode"), message=f"mode {mode} needs {' and '.join(lacking)}")

    def _continued(self, index: int, j: int, run: dict[str, Any]) -> Iterator[Fault]:
        """``from:`` names a run that comes before this one."""
        named = run.get("from")
        if not isinstance(named, str):
            return
        before = [
            name for i in range(index + 1) for name in self._runs(i, own=i == index, until=j if i == index else None)
        ]
        if named in before:
            return
        later = named in [name for i in range(len(self.groups)) for name in self._runs(i, own=i == index, until=None)]
        near = () if later else nearest(named, before)
        yield Fault(
            path=("groups", index, "runs", j, "from"),
            message=f"the run {named!r} does not come before this one"
            if later
            else f"there is no run {named!r}{suggestion(near)}",
            expected=None if near else f"one of {listing(before)}" if before else "a run above this one; there is none",
        )

    def _runs(self, index: int, *, own: bool, until: int | None) -> Iterator[str]:
        """Names of a group's runs, as a run may call them: ``GROUP/RUN``, in the same group also ``RUN``."""
        group = self.groups[index]
        runs = group.get("runs") if isinstance(group, dict) else None
        for run in runs[:until] if isinstance(runs, list) else ():
            if isinstance(run, dict) and isinstance(run.get("id"), str):
                if own:
                    yield run["id"]
                if isinstance(group.get("name"), str):
                    yield f"{group['name']}/{run['id']}"


def _inside(group: dict[str, Any], key: str) -> dict[str, Any] | None:
    """A mapping of a group, empty where it is absent; ``None`` where it is something else."""
    value = group.get(key)
    if value is None:
        return {}
    return value if isinstance(value, dict) else None


def _twice(items: Sequence[Any], key: str, what: str, path: Path) -> Iterator[Fault]:
    """Names that two items of a list share."""
    first: dict[str, int] = {}
    for index, item in enumerate(items):
        name = item.get(key) if isinstance(item, dict) else None
        if not isinstance(name, str):
            continue
        earlier = first.setdefault(name.casefold(), index)
        if earlier != index:
            shown = items[earlier][key]
            other = f"the {what} {shown!r}" if shown != name else f"another {what}"
            yield Fault(
                path=(*path, index, key),
                message=f"{other} has this name already, {'.'.join(map(str, (*path, earlier)))}",
                hint="names become folders, so they must differ in more than capitals" if shown != name else None,
            )
