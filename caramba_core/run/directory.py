"""The folder of one run: ``runs/NAME/GROUP/RUN/``.

manifest.yml     the resolved manifest of this run's group
plan.json        what the plan said
state.json       where the run stands (live; replaced at once)
metrics.jsonl    one line a logged step (live; appended)
checkpoints/     step_000100/, ... each published at once
evaluation/      negative log-likelihoods of every scored token
summary.json     the result; its presence means that the run is done
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Literal

import attrs

from caramba_core.errors import InputError
from caramba_core.places import regular
from caramba_core.run.atomic import write_json, write_text

__all__ = ["RunDirectory", "State", "hash_of", "step_of"]


_FILES = ("lock", "manifest.yml", "metrics.jsonl", "plan.json", "report.json", "state.json", "summary.json")


@attrs.frozen(kw_only=True)
class State:
    """Where a run stands.

    ``document`` is everything in the manifest that shapes the run's result, ``inputs`` are hashes of what the run reads
    (tokens, teacher), ``identity`` is drawn when it begins, and stands in its checkpoints; ``changes`` are what was
    changed in the manifest on the way.  ``results`` is what the mode gave once its work is done: then it has only to be
    measured.  ``seconds`` are of all calls that worked on it, as far as its last checkpoint or end.
    """

    status: Literal["running", "interrupted", "failed", "done"]
    document: dict[str, Any]
    inputs: dict[str, str] = attrs.Factory(dict)
    identity: str = attrs.Factory(lambda: uuid.uuid4().hex)
    changes: list[str] = attrs.Factory(list)
    results: dict[str, Any] | None = None
    step: int = 0
    seconds: float = 0.0
    error: str | None = None


class RunDirectory:
    """One run's folder, held by at most one process at a time (a lock, freed when the process dies)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    # ------------------------------------------------------------------------------------------------ lock

    def __enter__(self) -> RunDirectory:
        self.path.mkdir(parents=True, exist_ok=True)
        places = self.path, self.path / "checkpoints", self.path / "evaluation"
        for place in places:
            if os.path.lexists(place) and not place.is_dir():
                raise InputError(f"{place} is not a folder", hint="move what stands there away")
        for name in _FILES:
            regular(self.path / name)
        lock = (self.path / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            hint = "wait for it to end, or give this run another name"
            raise InputError(f"{self.path} is in use by another caramba process", hint=hint) from None
        self._lock = lock
        for place in places:
            for leftover in place.glob(".*"):  # of a process that died while publishing
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        return self

    def __exit__(self, *error: object) -> None:
        assert self._lock is not None
        self._lock.close()

    # ------------------------------------------------------------------------------------------------ state

    def state(self) -> State | None:
        """Where the run stands, or ``None`` where it never began."""
        path = self.path / "state.json"
        try:
            known = json.loads(regular(path).read_text(encoding="utf-8"))
            if known.pop("sha256", None) != hash_of(known):
                raise ValueError("it is not as it was written")
            return State(**known)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} is damaged: {error}", hint="start the run anew with --again") from error

    def set_state(self, state: State) -> None:
        """Record where the run stands."""
        known = attrs.asdict(state)
        write_json(self.path / "state.json", {**known, "sha256": hash_of(known)})

    def update(self, **changes: Any) -> None:
        """Record changes of where the run stands."""
        self.set_state(attrs.evolve(self.begun(), **changes))

    def begun(self) -> State:
        """Where a run that has begun stands; raises :class:`InputError` where its folder is gone."""
        state = self.state()
        if state is None:
            raise InputError(f"{self.path} is gone", hint="it was removed meanwhile: start the run again")
        return state

    def summary(self) -> dict[str, Any] | None:
        """The result of a finished run."""
        path = self.path / "summary.json"
        if not path.exists():
            return None
        try:
            summary: Any = json.loads(regular(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path} is damaged: {error}", hint="--again does the run anew") from error
        if not isinstance(summary, dict):
            raise InputError(f"{path} is damaged: it holds no result", hint="--again does the run anew")
        return summary

    # ------------------------------------------------------------------------------------------------ records

    def set_aside(self) -> None:
        """Make room for another attempt: what is here stays beside this folder, hidden, in place of an earlier one."""
        with self:  # nobody else is writing
            kept = self.path.with_name(f".{self.path.name}.previous")
            shutil.rmtree(kept, ignore_errors=True)
            self.path.rename(kept)

    def begin(self, *, keeps_measured: bool) -> None:
        """Remove what an attempt left that had no checkpoint to go on from; its measurements may still hold."""
        (self.path / "metrics.jsonl").unlink(missing_ok=True)
        if not keeps_measured:
            shutil.rmtree(self.path / "evaluation", ignore_errors=True)

    def write_json(self, name: str, data: Any) -> None:
        """Publish a JSON file of the run."""
        write_json(self.path / name, data)

    def write_text(self, name: str, text: str) -> None:
        """Publish a text file of the run."""
        write_text(self.path / name, text)

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``, but for a last one that a process died while writing."""
        path, found = self.path / "metrics.jsonl", []
        lines = regular(path).read_bytes().splitlines() if path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                found.append({**record, "step": int(record["step"])})
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                if number < len(lines):
                    raise InputError(f"{path}:{number} is damaged: {error}", hint="start anew with --again") from error
        return found

    def rewind_metrics(self, step: int) -> None:
        """Drop the lines of steps after ``step``: a resumed run writes them again."""
        if (self.path / "metrics.jsonl").exists():
            kept = (record for record in self.metrics() if record["step"] <= step)
            write_text(self.path / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept))

    # ------------------------------------------------------------------------------------------------ checkpoints

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step is published."""
        return self.path / "checkpoints" / f"step_{step:06d}"

    def checkpoints(self) -> list[Path]:
        """Published checkpoints, oldest first."""
        steps = ((step_of(path), path) for path in (self.path / "checkpoints").glob("step_*"))
        return [path for _, path in sorted((step, path) for step, path in steps if step is not None)]

    def drop_checkpoints(self, checkpoints: Iterable[Path]) -> None:
        """Remove checkpoints; each is renamed first, so that one removed in part is never taken for one."""
        for path in checkpoints:
            hidden = path.with_name(f".{path.name}.old")
            path.rename(hidden)
            shutil.rmtree(hidden)


def hash_of(known: dict[str, Any]) -> str:
    """SHA-256 of a state."""
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def step_of(path: Path) -> int | None:
    """The step that a checkpoint folder is named after; ``None`` for folders with other names."""
    number = path.name.removeprefix("step_")
    return int(number) if number.isdecimal() and number.isascii() else None
