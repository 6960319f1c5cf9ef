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
import json
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal

import attrs

from caramba_core.errors import InputError
from caramba_core.run.atomic import write_json, write_text

__all__ = ["RunDirectory", "State"]


@attrs.frozen(kw_only=True)
class State:
    """Where a run stands.  ``fingerprint`` identifies everything in the manifest that shapes the run's result."""

    status: Literal["running", "interrupted", "failed", "done"]
    fingerprint: str
    step: int = 0
    error: str | None = None


class RunDirectory:
    """One run's folder, held by at most one process at a time (a lock, freed when the process dies)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    # ------------------------------------------------------------------------------------------------ lock

    def __enter__(self) -> RunDirectory:
        self.path.mkdir(parents=True, exist_ok=True)
        lock = (self.path / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise InputError(
                f"{self.path} is in use by another caramba process",
                hint="wait for it to end, or give this run another name",
            ) from None
        self._lock = lock
        for leftover in self.path.glob("checkpoints/.step_*"):  # of a process that died while publishing
            shutil.rmtree(leftover)
        return self

    def __exit__(self, *error: object) -> None:
        assert self._lock is not None
        self._lock.close()

    # ------------------------------------------------------------------------------------------------ state

    def state(self) -> State | None:
        """Where the run stands, or ``None`` where it never began."""
        path = self.path / "state.json"
        if not path.exists():
            return None
        try:
            return State(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged: {error}", hint="remove the run's folder to start afresh") from error

    def set_state(self, state: State) -> None:
        """Record where the run stands."""
        write_json(self.path / "state.json", attrs.asdict(state))

    def update(self, **changes: Any) -> None:
        """Record changes of where the run stands."""
        state = self.state()
        assert state is not None
        self.set_state(attrs.evolve(state, **changes))

    def summary(self) -> dict[str, Any] | None:
        """The result of a finished run."""
        path = self.path / "summary.json"
        if not path.exists():
            return None
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return summary

    # ------------------------------------------------------------------------------------------------ records

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

    def rewind_metrics(self, step: int) -> None:
        """Drop the lines of steps after ``step``: a resumed run writes them again."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            kept = []
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                with suppress(ValueError):  # the process died while writing its last line
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
            write_text(path, "".join(kept))

    # ------------------------------------------------------------------------------------------------ checkpoints

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step is published."""
        return self.path / "checkpoints" / f"step_{step:06d}"

    def checkpoints(self) -> list[Path]:
        """Published checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))

    def drop_checkpoints(self, checkpoints: Iterable[Path]) -> None:
        """Remove checkpoints; each is renamed first, so that one removed in part is never taken for one."""
        for path in checkpoints:
            hidden = path.with_name(f".{path.name}.old")
            path.rename(hidden)
            shutil.rmtree(hidden)
