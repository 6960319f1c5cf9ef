"""Rules between the parts of a manifest: names that must differ, runs that continue others, what a mode needs.

They read plain data, so that they are checked even where another part of the manifest is wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import attrs

from caramba_core.document.faults import Fault, Faults
from caramba_core.document.problem import Path
from caramba_core.errors import InvalidValue, PluginError
from caramba_core.manifest.configs import of_invalid
from caramba_core.manifest.schema import Manifest
from caramba_core.modes import Data, Need
from caramba_core.plugins.registry import Registry
from caramba_core.suggestions import listing, nearest, suggestion

__all__ = ["group_faults", "rule_faults"]

_PLACES: Final[dict[Need, tuple[str, ...]]] = {
    "teacher": ("teacher",),
    "tokenizer": ("teacher",),
    "data.train": ("data", "train"),
    "data.heldout": ("data", "heldout"),
}
"""The keys of a group that give what a mode needs; a tokenizer comes with the teacher."""


def rule_faults(data: Mapping[str, Any], known: Sequence[Fault], registry: Registry) -> list[Fault]:
    """What breaks a rule; ``known`` is what structuring found: a misspelt key is not reported as missing, too."""
    groups = data.get("groups")
    if not isinstance(groups, list):
        return []
    misspelt = {fault.path[:-1] for fault in known if fault.at == "key"}
    rules = _Rules(groups, misspelt, registry)
    return [*rules.names(), *(fault for index in range(len(groups)) for fault in rules.group(index))]


def group_faults(manifest: Manifest) -> Iterator[Fault]:
    """Settings of runs that do not go with their groups."""
    for i, group in enumerate(manifest.groups):
        for j, run in enumerate(group.runs):
            try:
                run.check(group.teacher, group.data or Data())
            except InvalidValue as error:
                yield from Faults((of_invalid(error),)).below("groups", i, "runs", j)


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
                yield from self._needed(group, run, path, (*path, "runs", j))

    def _needed(self, group: dict[str, Any], run: dict[str, Any], path: Path, run_path: Path) -> Iterator[Fault]:
        """What the run's mode needs of its group."""
        mode = run.get("mode")
        if not isinstance(mode, str):
            return
        try:
            needs = self.registry.load(self.registry.find(("mode",), mode)).needs
        except PluginError:  # which structuring reports
            return
        lacking = []
        for key, *inner in dict.fromkeys(_PLACES[need] for need in sorted(needs)):
            held = group.get(key)
            if path in self.misspelt or (inner and (*path, key) in self.misspelt):
                continue
            if held is None or (inner and isinstance(held, dict) and held.get(inner[0]) is None):
                lacking.append(".".join((key, *inner)))
        if lacking:
            message = f"mode {mode} needs {' and '.join(f'{key} in its group' for key in lacking)}"
            yield Fault(path=(*run_path, "mode"), message=message)

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
