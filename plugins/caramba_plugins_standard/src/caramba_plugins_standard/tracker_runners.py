"""Trackers over their libraries, which are imported once a run names them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from caramba_core.places import expanded
from caramba_core.run.context import RunContext
from caramba_plugins_standard.trackers import TensorBoard, Trackio, WeightsAndBiases

__all__ = ["TensorBoardRunner", "TrackioRunner", "WeightsAndBiasesRunner"]


class TensorBoardRunner:
    """torch's writer of event files."""

    def __init__(self, config: TensorBoard, context: RunContext) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = context.directory.path / "tensorboard"
        if config.folder is not None:
            folder = expanded(config.folder) / Path(*context.directory.path.parts[-3:])
        again = None if context.resume_from is None else context.step + 1
        self._writer = SummaryWriter(str(folder), purge_step=again)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar each."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """To the file."""
        self._writer.flush()

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """Close the file."""
        self._writer.close()


class WeightsAndBiasesRunner:
    """A run there of the same identity as here, so that a run that goes on stays one."""

    def __init__(self, config: WeightsAndBiases, context: RunContext) -> None:
        import wandb

        state = context.directory.begun()
        self._run = wandb.init(
            project=config.project or context.shared.loaded.manifest.name,
            entity=config.entity,
            name=context.name,
            id=state.identity,
            resume="allow" if config.mode == "online" else None,
            config=state.document,
            mode=config.mode,
            dir=str(context.directory.path),
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One line of history."""
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """Its own process keeps everything at once."""

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """Hand the result over, and wait until it is kept."""
        if summary is not None:
            self._run.summary.update({key: summary[key] for key in summary.keys() - {"versions"}})
        self._run.finish(exit_code=0 if summary is not None else 1)


class TrackioRunner:
    """A run of trackio's; what it prints goes to stderr."""

    def __init__(self, config: Trackio, context: RunContext) -> None:
        import trackio

        self._trackio = trackio
        state = context.directory.begun()
        with redirect_stdout(sys.stderr):
            self._run = trackio.init(
                project=config.project or context.shared.loaded.manifest.name,
                name=f"{context.name} {state.identity[:6]}",  # another attempt is another run
                space_id=config.space,
                config=state.document,
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One line of numbers."""
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """A thread of its own keeps everything soon."""

    def end(self, summary: Mapping[str, Any] | None) -> None:
        """Wait until everything is kept."""
        with redirect_stdout(sys.stderr):
            self._trackio.finish()
