"""What differs between runs: in what they were asked, and in what they gave."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from caramba_core.errors import InputError
from caramba_plugins_report.records import names_of, state_of, summary_of

__all__ = ["Difference", "of_results", "of_settings", "varied"]

_MISSING: Final = object()
_TIMES: Final = ("name", "group", "run", "seconds")
"""Entries of a summary that differ between any two runs."""


@attrs.frozen(kw_only=True)
class Difference:
    """A path into plain data, and what stands there in either run; ``None`` also where nothing stands."""

    path: str
    a: Any
    b: Any


def of_settings(a: Path, b: Path) -> list[Difference]:
    """Where what two runs were asked differs: ``model.…``, ``data.…``, ``run.…``, and ``from.RUN.…`` of those before.

    It is compared as it was written once resolved, without defaults.  Raises :class:`InputError` for a damaged run.
    """
    return list(_differences(_asked(a), _asked(b)))


def of_results(a: Path, b: Path) -> list[Difference]:
    """Where the results of two runs differ; a run without any has none to differ in."""
    found = []
    for path in (a, b):
        summary = summary_of(path)
        if isinstance(summary, str):
            raise InputError(summary)
        found.append({key: value for key, value in summary.items() if key not in _TIMES})
    return list(_differences(found[0], found[1])) if all(found) else []


def varied(paths: Sequence[Path]) -> dict[str, list[Any]]:
    """What runs of a matrix, or of groups that extend one another, were asked differently: values by name, one a run.

    Runs of one manifest with the same name of their own are compared; the others have ``None``.  A setting is named by
    the end of its path that no other one has; of settings with the same values throughout the first stands for all.
    """
    asked, alike = [], dict[tuple[str, str], list[int]]()
    for index, path in enumerate(paths):
        name, _, run = names_of(path)
        found = _asked(path)
        runs = {**found.pop("from", {}), run: found.pop("run", None)}
        asked.append(dict(_leaves({**found, **runs})))
        alike.setdefault((name, run), []).append(index)
    columns: dict[str, list[Any]] = {}
    for setting in dict.fromkeys(key for one in asked for key in one):
        values: list[Any] = [None] * len(paths)
        for indexes in alike.values():
            own = [asked[index].get(setting, _MISSING) for index in indexes]
            if any(value != own[0] or isinstance(value, bool) != isinstance(own[0], bool) for value in own):
                for index, value in zip(indexes, own, strict=True):
                    values[index] = None if value is _MISSING else value
        if any(value is not None for value in values) and values not in columns.values():
            columns[setting] = values
    return {_ending(setting, columns): values for setting, values in columns.items()}


def _leaves(found: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Values that are no mappings or lists, by their dotted paths."""
    if isinstance(found, Mapping | list):
        items = found.items() if isinstance(found, Mapping) else enumerate(found)
        for key, value in items:
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, found


def _ending(setting: str, among: Iterable[str]) -> str:
    """The shortest end of a dotted path that no other path has."""
    parts, others = setting.split("."), [other for other in among if other != setting]
    for count in range(1, len(parts)):
        name = ".".join(parts[-count:])
        if not any(f".{other}".endswith(f".{name}") for other in others):
            return name
    return setting


def _asked(path: Path) -> dict[str, Any]:
    """What a run was asked, under names that do not depend on those of its group and itself."""
    state = state_of(path)
    if isinstance(state, str):
        raise InputError(state)
    group, run = path.resolve().parts[-2:]
    found: dict[str, Any] = {}
    groups = state.document.get("groups")
    for name, shared in groups.items() if isinstance(groups, Mapping) else ():
        if not isinstance(shared, Mapping):
            continue
        runs = shared.get("runs")
        if name == group:
            found |= {key: value for key, value in shared.items() if key != "runs"}
        for each, settings in runs.items() if isinstance(runs, Mapping) else ():
            if name == group and each == run:
                found["run"] = settings
            else:
                found.setdefault("from", {})[each if name == group else f"{name}/{each}"] = settings
    return found


def _differences(a: Any, b: Any, path: tuple[str, ...] = ()) -> Iterator[Difference]:
    pairs: list[tuple[str, Any, Any]] | None = None
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = dict.fromkeys((*a, *b))
        pairs = [(str(key), a.get(key, _MISSING), b.get(key, _MISSING)) for key in keys]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = [(str(index), *pair) for index, pair in enumerate(zip(a, b, strict=True))]
    if pairs is not None:
        for key, left, right in pairs:
            yield from _differences(left, right, (*path, key))
    elif a != b or isinstance(a, bool) != isinstance(b, bool):
        yield Difference(path=".".join(path), a=None if a is _MISSING else a, b=None if b is _MISSING else b)
