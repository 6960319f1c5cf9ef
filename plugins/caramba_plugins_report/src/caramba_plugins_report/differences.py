"""What differs between two runs: in what they were asked, and in what they gave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from caramba_core.errors import InputError
from caramba_plugins_report.records import state_of, summary_of

__all__ = ["Difference", "of_results", "of_settings"]

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
