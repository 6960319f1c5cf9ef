"""What the processes behind the first one do: wait, and do their part of what it calls them for, without a word."""

from __future__ import annotations

import io
import logging
import os
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from caramba_terminal.limit import Limit, Paused
from caramba_terminal.reporter import Reporter
from caramba_terminal.signals import Interrupted, Signals, signals_held
from rich.console import Console

from caramba_core.errors import CarambaError
from caramba_core.manifest.load import Loaded
from caramba_core.nn.build import load_object
from caramba_core.run.context import GroupContext, RunContext
from caramba_core.run.directory import RunDirectory
from caramba_plugins_standard.parallel.team import meeting, open_store

__all__ = ["follow_first"]


def follow_first(load: Callable[[], Loaded]) -> None:
    """Do this process's part of whatever the first one does together with others, until that one ends."""
    logging.getLogger("caramba").setLevel(logging.CRITICAL)  # the first process warns
    loaded: Loaded | None = None
    groups: dict[str, GroupContext] = {}
    with signals_held() as signals:
        try:
            open_store()
        except Interrupted as ended:
            os._exit(128 + ended.number)  # the others do not know of this process yet
        with signals.deferred():
            here = meeting()
        try:
            while (task := here.called(signals)) is not None:
                loaded = loaded or load()
                group = next(one for one in loaded.manifest.groups if one.name == task["group"])
                if group.name not in groups:
                    groups.clear()  # one teacher in memory at a time
                    groups[group.name] = GroupContext.open(loaded, group)
                _take_part(groups[group.name], task, signals)
        except Interrupted as ended:
            here.end_interrupted(ended.number)
        except CarambaError:
            raise
        except Exception:
            traceback.print_exc()
            raise
    if signals.pending is not None:
        here.leave(128 + signals.pending)  # the first process has saved the run, and said so


def _take_part(shared: GroupContext, task: Mapping[str, Any], signals: Signals) -> None:
    run = next(one for one in shared.group.runs if one.id == task["run"])
    context = _Follower(
        shared=shared,
        run=run,
        directory=_ReadOnly(Path(task["folder"])),
        reporter=Reporter(Console(file=io.StringIO())),
        hooks=_NoHooks(),
        parent=None if task["parent"] is None else Path(task["parent"]),
        limit=Limit(signals),
    )
    if task["resume_from"] is not None:
        context.resume_at(Path(task["resume_from"]))
    run.check_before(context.device.type, context.sites)
    with suppress(Paused):  # where the first process said so
        load_object(run.builds)(run, context).run()


class _NoHooks:
    """Plugins hear of a run from its first process."""

    def __getattr__(self, name: str) -> Callable[..., list[Any]]:
        return lambda **arguments: []


class _ReadOnly(RunDirectory):
    """A run's folder as a process sees it that writes nothing."""

    def update(self, **changes: Any) -> None: ...
    def write_json(self, name: str, data: Any) -> None: ...
    def write_text(self, name: str, text: str) -> None: ...
    def append_metrics(self, record: dict[str, Any]) -> None: ...
    def rewind_metrics(self, step: int) -> None: ...
    def drop_checkpoints(self, checkpoints: Iterable[Path]) -> None: ...


class _Follower(RunContext):
    """The run as such a process sees it."""

    def save(
        self,
        step: int,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        state: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
        replace: bool = False,
    ) -> Path:
        self.step = step
        return self.directory.checkpoint(step)

    def keep(self, done: int, note: Mapping[str, Any]) -> None: ...
