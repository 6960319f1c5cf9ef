"""What the folders of runs tell, read so that a damaged or unfinished one is said to be so; no torch."""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
from caramba_plugins_standard.opening import find_runs, is_run

from caramba_core.errors import InputError
from caramba_core.places import expanded, regular
from caramba_core.run.directory import RunDirectory, State

__all__ = [
    "RunInfo",
    "bytes_under",
    "find_run",
    "names_of",
    "number",
    "run_info",
    "runs_under",
    "state_of",
    "summary_of",
]

_TAIL: Final = 4096
"""Bytes at the end of ``metrics.jsonl`` in which the last step's line lies."""


@attrs.frozen(kw_only=True)
class RunInfo:
    """One run.

    Attributes:
        name, group, run: the manifest's name, and those of group and run.
        status: ``done``, ``running``, ``killed`` (it says that it runs, and no process holds it), ``interrupted``,
            ``failed`` or ``damaged``.
        step: training steps taken.
        loss: of the last step that was logged.
        perplexity, standard_error: on the held-out tokens, at the end of the run.
        ratio: that perplexity over the teacher's.
        cache_bytes_per_token: bytes that decoding keeps per token of a context of ``cache_context`` tokens, beside
            ``cache_bytes_once`` that it keeps whatever the context.
        modified: when the run last wrote where it stands, in seconds since 1970.
        path: the run's folder, for :func:`caramba.open`.

    What a run has not measured is ``None``.
    """

    name: str
    group: str
    run: str
    status: str
    step: int
    loss: float | None
    perplexity: float | None
    standard_error: float | None
    ratio: float | None
    cache_bytes_per_token: float | None
    cache_bytes_once: float | None
    cache_context: float | None
    modified: float | None
    path: Path


def run_info(path: Path) -> RunInfo:
    """What a run's folder tells: three small files are read, of ``metrics.jsonl`` the end.

    That ``state.json`` is as it was written (its hash) is left to :func:`state_of`: a table of runs is read at once.
    """
    name, group, run = names_of(path)
    known = _read(path / "state.json")
    status, step = known.get("status"), known.get("step")
    summary = summary_of(path)
    if not isinstance(status, str) or not isinstance(step, int) or isinstance(summary, str):
        status, step, summary = "damaged", 0, {}
    elif status == "running" and not _is_held(path):
        status = "killed"
    metrics, written = _last_metrics(path / "metrics.jsonl")
    times = [written, _modified(path / "state.json")]
    return RunInfo(
        name=name,
        group=group,
        run=run,
        status=status,
        step=step,
        loss=number(metrics, "loss"),
        perplexity=number(summary, "perplexity", "end"),
        standard_error=number(summary, "perplexity_standard_error", "end"),
        ratio=number(summary, "perplexity_ratio", "end"),
        cache_bytes_per_token=number(summary, "cache_bytes_per_token", "student"),
        cache_bytes_once=number(summary, "cache_bytes_once", "student"),
        cache_context=number(summary, "cache_context"),
        modified=max((time for time in times if time is not None), default=None),
        path=path,
    )


def names_of(path: Path) -> tuple[str, str, str]:
    """The names of a run: its manifest's, its group's and its own."""
    parts = path.parts if len(path.parts) > 3 and ".." not in path.parts else path.resolve().parts
    name, group, run = parts[-3:]
    return name, group, run


def state_of(path: Path) -> State | str:
    """Where a run stands, or what is wrong with the file that says so."""
    try:
        state = RunDirectory(path).state()
    except (InputError, OSError) as error:
        return str(error)
    if state is None:
        return f"{path / 'state.json'} is gone"
    fits = isinstance(state.document, dict) and isinstance(state.step, int) and isinstance(state.status, str)
    return state if fits else f"{path / 'state.json'} is damaged: it does not say where a run stands"


def summary_of(path: Path) -> dict[str, Any] | str:
    """A run's results, empty where there are none yet; or what is wrong with the file that holds them."""
    try:
        return RunDirectory(path).summary() or {}
    except (InputError, OSError) as error:
        return str(error)


def number(data: Mapping[str, Any], *path: str) -> float | None:
    """The finite number at a path into JSON, an integer as one; ``None`` where there is none."""
    found: Any = data
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return None
    return found


def runs_under(folder: Path) -> list[Path]:
    """The folders of the runs at or under ``folder``; :class:`InputError` where there is no such folder."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}", hint="caramba run makes it; --output names another")
    return find_runs(folder)


def find_run(name: str) -> Path:
    """The folder of a run that is named as a path, or as ``NAME/GROUP/RUN`` under ``runs``."""
    places = (expanded(name), Path("runs") / name)
    for place in places:
        if is_run(place):
            return place
    for place in places:
        if place.is_dir():
            inside = [str(run) for run in find_runs(place)][:4]
            known = f"one of: {', '.join(inside)}" if inside else "a folder such as runs/NAME/GROUP/RUN"
            raise InputError(f"{place} is not a run's folder", expected=known)
    raise InputError(f"there is no run {name}", hint="caramba runs list names those under runs/")


def bytes_under(folder: Path) -> int:
    """Bytes of all files under a folder; links are not followed."""
    return sum(_sizes(folder))


def _sizes(folder: Path | str) -> Iterator[int]:
    try:
        entries = list(os.scandir(folder))
    except OSError:  # removed meanwhile, or not ours to look into
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _sizes(entry.path)
        else:
            try:
                yield entry.stat(follow_symlinks=False).st_size
            except OSError:
                continue


def _last_metrics(path: Path) -> tuple[dict[str, Any], float | None]:
    """The last line that has a loss, and when the file was written."""
    try:
        with regular(path).open("rb") as file:
            about = os.fstat(file.fileno())
            file.seek(max(0, about.st_size - _TAIL))
            lines = file.read(_TAIL).splitlines()
    except (InputError, OSError):
        return {}, None
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and "loss" in found:
            return found, about.st_mtime
    return {}, about.st_mtime


def _read(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; empty where there is none."""
    try:
        found = json.loads(regular(path).read_bytes())
    except (InputError, OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _is_held(path: Path) -> bool:
    """Whether a process holds the run: its lock is freed when that process ends, however it does."""
    try:
        with regular(path / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (InputError, OSError):
        return False
    return False
