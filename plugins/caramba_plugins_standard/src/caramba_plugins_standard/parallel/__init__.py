"""Several processes that do one run together, one a device, as torchrun starts them (configs; light)."""

from __future__ import annotations

import os

from caramba_core.components import component, option
from caramba_core.errors import InputError, InvalidValue

__all__ = ["Parallel", "process_count", "process_rank", "require_processes"]


@component
class Parallel:
    """How the processes of a run divide its work."""

    data: int = option(
        default=1, help="processes that divide each batch, one a device: torchrun starts them", minimum=1
    )
    shard: bool | int = option(
        default=False,
        help="divide weights, gradients and optimizer state as well: true among all processes, N among each N of them",
    )

    def __attrs_post_init__(self) -> None:
        if self.shards < 1 or self.data % self.shards:
            expected = f"true, false, or a number that divides {self.data}"
            raise InvalidValue("shard", f"{self.data} processes are no groups of {self.shard}", expected=expected)

    @property
    def shards(self) -> int:
        """Processes that hold one copy of the model together."""
        return self.data if self.shard is True else 1 if self.shard is False else self.shard


def process_count() -> int:
    """Processes that were started together (torchrun's ``WORLD_SIZE``)."""
    return _number("WORLD_SIZE", 1)


def process_rank() -> int:
    """Which of them this one is, from 0; the first reads, writes and speaks for all."""
    return _number("RANK", 0)


def _number(name: str, least: int) -> int:
    said = os.environ.get(name) or str(least)
    if not said.isdecimal() or int(said) < least:
        hint = "torchrun sets it; unset it where one process runs"
        raise InputError(
            f"the environment variable {name} is {said!r}", expected=f"a number from {least} on", hint=hint
        )
    return int(said)


def require_processes(run: str, data: int) -> None:
    """Raise :class:`InputError` where there are not as many processes as ``train.parallel.data`` says."""
    started = process_count()
    if started == data:
        return
    command = f"torchrun --nproc-per-node {data} -m -- caramba run MANIFEST"
    if started == 1:
        raise InputError(f"run {run}: train.parallel.data is {data}, and one process was started", hint=command)
    raise InputError(
        f"run {run}: train.parallel.data is {data}, and {started} processes were started",
        hint=f"set it to {started}, which has to divide batch_size: results do not depend on it"
        + ("" if data == 1 else f"; or start as many as it says: {command}"),
    )
