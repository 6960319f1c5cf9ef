"""The processes of a run: what they agree on, and how each learns that another one has gone.

They meet in torch's store, that of torchrun.  The first process does what one process does, and calls the others for
the part that is done together; until then they wait in the store, where no time runs out.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final, NoReturn

import torch
import torch.distributed as dist
from caramba_terminal.limit import Paused
from caramba_terminal.signals import Interrupted, Signals, pass_on
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from caramba_core.errors import InputError
from caramba_core.run.context import RunContext
from caramba_plugins_standard.parallel import process_count, process_rank
from caramba_plugins_standard.parallel.watchdog import Entry, killed, lives, start_watchdog

__all__ = ["Meeting", "Team", "meeting", "open_store", "together"]

_PATIENCE: Final = timedelta(hours=2)
"""For an exchange between processes: one waits for the others' evaluations and writes.  A death is seen at once."""

_ATTEMPT: Final = timedelta(seconds=5)
"""In which a process that asks for the store hears no signal."""

_POLL: Final = 0.1
_REASON: Final = 3.0
"""Seconds in which a failure of all processes, or of another one, is told apart from one's own, and a signal too."""

_SILENT: Final = 30.0
"""Seconds behind which a process says that it waits for the first one."""

_SLOW: Final = 60.0
"""Seconds that the first process waits at its end for others."""

_ABSENT: Final = 20.0
"""The same for such as have not come yet: torchrun kills whoever has not ended half a minute behind a signal."""


class Team:
    """The processes that do a run together; one process alone is a team, and exchanges nothing."""

    def __init__(self, size: int = 1, rank: int = 0) -> None:
        self.size = size
        self.rank = rank

    @property
    def is_first(self) -> bool:
        """Whether this process writes, logs and decides for all."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """This process's part of ``rows`` rows, in the order of the processes; parts differ by one row at most."""
        return slice(self.rank * rows // self.size, (self.rank + 1) * rows // self.size)

    def mean(self, x: Tensor) -> Tensor:
        """The mean of a tensor over the processes, without a gradient; the same bits in all of them."""
        return x if self.size == 1 else self.sum(x) / self.size

    def sum(self, x: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        if self.size == 1:
            return x
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    def agree(self, *values: int) -> tuple[int, ...]:
        """The largest of each of some numbers over the processes; waits for all of them, and for no device."""
        if self.size == 1:
            return values
        known = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(known, op=dist.ReduceOp.MAX)
        return tuple(known.tolist())

    def heard(self, signals: Signals, *values: int) -> tuple[int, ...]:
        """The signal that came to any process, or 0, which is pending in all of them then; and what they agree on."""
        number, *largest = self.agree(signals.pending or 0, *values)
        if number and signals.pending is None:
            signals.pending = number
        return number, *largest

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.data, src=0)


class Meeting:
    """The store in which the processes meet, and a thread that looks whether those of this machine are alive."""

    def __init__(self) -> None:
        self.size, self.rank = process_count(), process_rank()
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun --max-restarts keeps the store
        self._store = dist.PrefixStore(f"caramba/{attempt}", open_store())  # type: ignore[attr-defined]
        self._given = 0
        self._is_busy = False
        self._is_leaving = False
        self._signal: int | None = None
        self._peers: dict[int, int] = {}
        self._store.set(f"process/{self.rank}", json.dumps([socket.gethostname(), os.getpid()]))
        self._entry = self._in_watchdog()
        threading.Thread(target=self._watch, daemon=True).start()
        atexit.register(self._leave)

    def _in_watchdog(self) -> Entry:
        """This process's entry in the watchdog of its machine, which the first one there starts."""
        watchdog = f"watchdog/{socket.gethostname()}"
        if self._store.add(f"{watchdog}/wanted", 1) == 1:
            folder, entry = start_watchdog(self.rank, self.size)
            self._store.set(watchdog, str(folder))
            return entry
        while not self._has(watchdog):
            time.sleep(_POLL)
        return Entry(Path(self._store.get(watchdog).decode()), self.rank)

    # ------------------------------------------------------------------------------------------------ what is done

    def call(self, task: dict[str, Any]) -> None:
        """Tell the others what is to be done together."""
        self._store.set(f"task/{self._given}", json.dumps(task))
        self._given += 1

    def called(self, signals: Signals) -> dict[str, Any] | None:
        """What the first process calls for next; ``None`` once it has ended.  A signal is passed on to it."""
        try:
            with signals.deferred():
                while not self._has(f"task/{self._given}"):
                    if self._has("left/0"):
                        return None
                    if signals.pending is not None:
                        self._store.set("signal", str(signals.pending))
                    time.sleep(_POLL)
        except dist.DistNetworkError:  # the first process, or torchrun, kept the store and has ended
            return None
        self._given += 1
        task: dict[str, Any] = json.loads(self._store.get(f"task/{self._given - 1}"))
        return task

    @contextmanager
    def team(self) -> Iterator[Team]:
        """Work of all processes; a failure of one is told by that one, and ends the others without a word."""
        self._is_busy = True
        try:
            if not dist.is_initialized():
                self._wait_for_peers()
                dist.init_process_group(
                    "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                    store=self._store.clone(),  # type: ignore[attr-defined]  # torch waits in it, while the watch asks
                    rank=self.rank,
                    world_size=self.size,
                    timeout=_PATIENCE,
                )
            yield Team(self.size, self.rank)
        except Paused:
            self._is_busy = False  # in all of them
            raise
        except Interrupted as ended:
            self._signal = ended.number
            with suppress(dist.DistNetworkError):
                self._miss_killed()
                self._end_behind_others()  # torchrun ends the rest of them
            raise
        except Exception as error:
            self._fail(error)
            raise
        self._is_busy = False

    def _fail(self, error: Exception) -> None:
        """End silently where the failure is another process's: the first speaks for what fails in all of them."""
        if self.rank == 0 and not _is_of_exchange(error):
            self._store.set("failed/0", "")
            return
        until = time.monotonic() + _REASON
        try:
            while time.monotonic() < until:  # where one was killed, the thread that watches says so and ends this
                self._end_with_interrupted(error)
                with suppress(Interrupted):  # torchrun ends the others of one that died
                    self._end_behind_others()
                    time.sleep(_POLL)
            self._store.set(f"failed/{self.rank}", "")
        except dist.DistNetworkError:
            self._lose_store()

    def _end_behind_others(self) -> None:
        """End silently where another process has failed, once it has said why: torchrun ends all when one ends."""
        failed = [rank for rank in range(self.size) if rank != self.rank and self._has(f"failed/{rank}")]
        until = time.monotonic() + 3 * _REASON
        while failed and time.monotonic() < until and not any(self._has(f"left/{rank}") for rank in failed):
            with suppress(Interrupted):
                time.sleep(_POLL)
        if failed:
            self.end()

    def _end_with_interrupted(self, error: Exception) -> None:
        """Raise :class:`Interrupted` where a signal ended another process at once."""
        numbers = [number for rank in range(self.size) if rank != self.rank and (number := self._left(rank))]
        if numbers:
            self._signal = numbers[0]
            raise Interrupted(numbers[0]) from error

    # ------------------------------------------------------------------------------------------------ who is there

    def _left(self, rank: int) -> int | None:
        """The signal that ended a process which has left, or 0; ``None`` of one that has not."""
        return int(self._store.get(f"left/{rank}") or 0) if self._has(f"left/{rank}") else None

    def _has(self, key: str) -> bool:
        return bool(self._store.check([key]))

    def _watch(self) -> None:
        """Look for the other processes of this machine, and end this one where one of them has gone without a word.

        Torchrun ends the rest as well, but a process that waits for a device hears no signal.  Where not even this
        thread runs, the watchdog ends it.  The first process gets a signal that another one got while it waited.
        """
        try:
            self._wait_for_peers()
            self._find_peers()
            while not self._is_leaving:
                self._miss_killed()
                for rank in self._gone():
                    number = self._left(rank) or 0
                    if self._is_busy or self._misses(number):
                        time.sleep(_REASON)  # it has said why it ends, or did what was to be done, as this one will
                        if self._is_busy or self._misses(number):
                            self._end_behind(number)
                if self.rank == 0 and self._has("signal"):
                    time.sleep(_REASON)  # most come to all processes
                    pass_on(int(self._store.get("signal")))
                time.sleep(5 * _POLL)
        except dist.DistNetworkError:  # whoever kept the store has gone: torchrun, or the first process without it
            if self._is_busy:
                time.sleep(_REASON)
            if self._is_busy:
                self._lose_store()

    def _gone(self) -> list[int]:
        """The other processes of this machine that have ended."""
        return [rank for rank, number in self._peers.items() if not lives(number)]

    def _killed(self) -> list[int]:
        """Those of them that have gone without a word."""
        return [rank for rank in self._gone() if not self._has(f"left/{rank}")]

    def _miss_killed(self) -> None:
        """End this process where another one has gone without a word."""
        for rank in self._killed():
            self._mourn(rank)
            self.end()

    def _misses(self, number: int) -> bool:
        """Whether this process could call for one that has left, by this signal: then it gets that as well."""
        return self.rank == 0 and not self._is_leaving and not number

    def _end_behind(self, number: int) -> NoReturn:
        """End behind another process, which has said why unless a signal ended it."""
        if number and self.rank == 0:
            sys.stderr.write(f"{Interrupted(number).said}\n")
        self.end(128 + number if number else 1)

    def _find_peers(self) -> None:
        """Note the processes of this machine that have come."""
        for rank in range(self.size):
            if rank != self.rank and self._has(f"process/{rank}"):
                host, number = json.loads(self._store.get(f"process/{rank}"))
                if host == socket.gethostname():
                    self._peers[rank] = number

    def _wait_for_peers(self) -> None:
        while not all(self._has(f"process/{rank}") for rank in range(self.size)):
            time.sleep(_POLL)

    def _lose_store(self) -> None:
        if self.rank == 1:
            self._entry.said()
            sys.stderr.write(killed(0, self.size))
        self.end()

    def _mourn(self, rank: int) -> None:
        """Say that a process was killed, where no other one does."""
        if self._store.add("mourned", 1) == 1:
            self._entry.said()
            sys.stderr.write(killed(rank, self.size))

    def leave(self, code: int) -> NoReturn:
        """End this process in order."""
        self._leave()
        self.end(code)

    def end_interrupted(self, number: int) -> NoReturn:
        """End this process at once, as a signal asks; the first one got it as well, or says so for this one."""
        with suppress(dist.DistNetworkError):
            self._store.set("signal", str(number))
            self._store.set(f"left/{self.rank}", str(number))
        self.end(128 + number)

    def end(self, code: int = 1) -> NoReturn:
        """End this process at once: another one tells why."""
        sys.stderr.flush()
        self._entry.leave()
        os._exit(code)

    def _leave(self) -> None:
        """At the process's end: tell the others, and close what is open where all of them do."""
        self._is_leaving = True
        self._entry.leave()
        try:
            self._find_peers()  # the watch may not have got to it
            for rank in self._killed():  # torchrun asked this one to end, which it has done by now
                self._mourn(rank)
            said = str(self._signal or "")
            if self.rank == 0:
                self._store.set("left/0", said)
            if dist.is_initialized() and not self._is_busy:
                dist.destroy_process_group()
            self._store.set(f"left/{self.rank}", said)
            if self.rank == 0 and not self._is_busy:
                self._wait_for_others()
        except RuntimeError:
            pass

    def _wait_for_others(self) -> None:
        """Until the others have left: this process may keep the store, which they still ask, or will when they come."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # all is done: they may end this
        begun = time.monotonic()
        while others := [
            rank for rank in range(1, self.size) if not self._has(f"left/{rank}") and rank not in self._gone()
        ]:
            come = [rank for rank in others if self._has(f"process/{rank}")]
            absent = _ABSENT if Signals.last is None else _REASON  # a signal that ends this process ends them as well
            if time.monotonic() - begun > (_SLOW if come else absent):
                break
            time.sleep(_POLL)


@cache
def open_store() -> dist.Store:  # type: ignore[name-defined]
    """The store of this process and its peers, whoever of them is there yet.

    Torch waits for them without hearing signals, for hours: so it is told of one process, and asked anew every while.
    """
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"{process_count()} processes were started (WORLD_SIZE), and {', '.join(missing)} is not set",
            hint="start them with torchrun --nproc-per-node N -m -- caramba run MANIFEST",
        )
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    rank, begun, is_silent = process_rank(), time.monotonic(), True
    while True:
        try:
            store, _, _ = next(rendezvous("env://", rank, 1, timeout=_ATTEMPT))
        except dist.DistError as error:
            waited = time.monotonic() - begun
            if rank == 0 or waited > _PATIENCE.total_seconds():
                problem = f"process {rank} cannot meet the others at {where} (MASTER_ADDR, MASTER_PORT)"
                said = str(error).partition("\n")[0]
                hint = "another run may have this port: torchrun --standalone takes a free one"
                raise InputError(f"{problem}: {said}", hint=hint) from error
            if is_silent and waited > _SILENT:
                is_silent = False
                sys.stderr.write(f"process {rank} waits for the first one at {where}\n")
        else:
            store.set_timeout(_PATIENCE)
            return store


def _is_of_exchange(error: Exception) -> bool:
    """Whether an exchange failed, which another process's end makes it do."""
    said = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in said for word in ("gloo", "nccl", "connection"))


@cache
def meeting() -> Meeting:
    """The meeting of this process and those that were started with it; its device is the local rank's."""
    if torch.cuda.is_available():
        local, there = int(os.environ.get("LOCAL_RANK") or 0), torch.cuda.device_count()
        if local >= there:
            raise InputError(
                f"process {local} of this machine has no device: CUDA has {there}",
                hint=f"torchrun --nproc-per-node {there}",
            )
        torch.cuda.set_device(local)
    return Meeting()


@contextmanager
def together(context: RunContext) -> Iterator[Team]:
    """Do what is in the block with all processes that were started; the others come to the same block of the run."""
    if process_count() == 1:
        yield Team()
        return
    if process_rank() == 0:
        task = {"group": context.group.name, "run": context.run.id, "folder": str(context.directory.path)}
        paths = {"parent": context.parent, "resume_from": context.resume_from}
        meeting().call(task | {name: None if path is None else str(path) for name, path in paths.items()})
    with meeting().team() as team:
        yield team
