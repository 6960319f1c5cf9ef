"""Rules between the parts of a manifest: names that must differ, runs that continue others, what a mode needs.

They read plain data, so that they are checked even where another part of the manifest is wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from caramba_document.problem import Fault, Path
from caramba_document.suggestions import listing, unknown

from caramba_core.errors import InvalidValue, PluginError
from caramba_core.manifest.schema import Manifest
from caramba_core.modes import Data, Need
from caramba_core.plugins.registry import Registry

__all__ = ["group_faults", "rule_faults"]

_PLACES: Final[dict[Need, tuple[str, ...]]] = {
    "teacher": ("teacher",),
    "tokenizer": ("teacher",),
    "data.train": ("data", "train"),
    "data.heldout": ("data", "heldout"),
}
"""The keys of a group that give what a mode needs; a tokenizer comes with the teacher."""


def rule_faults(data: Mapping[str, Any], known: Sequence[Fault], registry: Registry) -> Iterator[Fault]:
    """What breaks a rule; ``known`` is what structuring found: a misspelt key is not reported as missing, too."""
    groups = data.get("groups")
    if not isinstance(groups, list):
        return
    misspelt = {fault.path[:-1] for fault in known if fault.at == "key"}
    yield from _twice(groups, "name", "group", ("groups",))  # even where capitals do not count: names are folders
    before: list[str] = []
    everywhere = [name for group in groups for name in _names(group, _runs(group), own=False)]
    for i, group in enumerate(groups):
        runs = _runs(group)
        yield from _twice(runs, "id", "run", ("groups", i, "runs"))
        everyone = [*everywhere, *_names(group, runs)]
        for j, run in enumerate(runs):
            path: Path = ("groups", i, "runs", j)
            if isinstance(run, dict):
                yield from _continued(run, path, [*before, *_names(group, runs[:j])], everyone)
                yield from _needed(group, run, path, misspelt, registry)
        before += _names(group, runs, own=False)


def group_faults(manifest: Manifest) -> Iterator[Fault]:
    """Settings of runs that do not go with their groups."""
    for i, group in enumerate(manifest.groups):
        for j, run in enumerate(group.runs):
            data = group.data or Data()
            try:
                run.check(group.teacher, data)
            except InvalidValue as error:
                yield Fault.of(error, "groups", i, "runs", j)
            wanted = None if run.verify is None else run.verify.perplexity_ratio_at_most
            if wanted is not None and (group.teacher is None or data.heldout is None or not run.measures):
                message = (
                    "there is no ratio to hold against it: that takes a teacher, data.heldout, and a mode that measures"
                )
                yield Fault(path=("groups", i, "runs", j, "verify", "perplexity_ratio_at_most"), message=message)


def _runs(group: Any) -> list[Any]:
    runs = group.get("runs") if isinstance(group, dict) else None
    return runs if isinstance(runs, list) else []


def _names(group: Any, runs: Sequence[Any], *, own: bool = True) -> Iterator[str]:
    """What a run may call these runs of a group: ``GROUP/RUN``, and ``RUN`` if it is of the same group."""
    for run in runs:
        if isinstance(run, dict) and isinstance(run.get("id"), str):
            if own:
                yield run["id"]
            if isinstance(group.get("name"), str):
                yield f"{group['name']}/{run['id']}"


def _continued(run: dict[str, Any], path: Path, before: list[str], everyone: list[str]) -> Iterator[Fault]:
    """``from:`` names a run that comes before this one."""
    named = run.get("from")
    if not isinstance(named, str) or named in before:
        return
    right = "one of {}" if before else "a run above this one; there is none"
    message, expected = unknown(f"there is no run {named!r}", named, before, right)
    if named in everyone:
        message, expected = f"the run {named!r} does not come before this one", right.format(listing(before))
    yield Fault(path=(*path, "from"), message=message, expected=expected)


def _needed(
    group: dict[str, Any], run: dict[str, Any], path: Path, misspelt: Collection[Path], registry: Registry
) -> Iterator[Fault]:
    """What the run's mode needs of its group."""
    try:
        needs = registry.load(registry.find(("mode",), str(run.get("mode")))).needs
    except PluginError:  # which structuring reports
        return
    lacking = []
    for key, *inner in dict.fromkeys(_PLACES[need] for need in sorted(needs) if need in _PLACES):
        held = group.get(key)
        if path[:2] in misspelt or (inner and (*path[:2], key) in misspelt):
            continue
        if held is None or (inner and isinstance(held, dict) and held.get(inner[0]) is None):
            lacking.append(f"{'.'.join((key, *inner))} in its group")
    if lacking:
        yield Fault(path=(*path, "mode"), message=f"mode {run['mode']} needs {' and '.join(lacking)}")


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
