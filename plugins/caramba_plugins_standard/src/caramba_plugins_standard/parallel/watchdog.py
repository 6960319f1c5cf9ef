"""A small process on each machine that ends a run of which one process was killed while the others cannot see it.

A process whose peer has died may wait for its device within a call that holds Python's global lock: then none of its
threads runs, and no handler of a signal.  So another process looks: this file, as a script, without torch.

Processes and watchdog share a folder.  Each process has an entry there, ``RANK.NUMBER``, until it leaves by itself: an
entry whose process is gone tells of a kill.  ``said`` stands there once it was said.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["Entry", "killed", "lives", "start_watchdog", "watch"]

_POLL: Final = 0.25
_GRACE: Final = 6.0
"""Seconds for the others to see the kill, and to end, by themselves."""


class Entry:
    """What a process has in the watchdog's folder; nothing where the watchdog has ended already."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._file = folder / f"{rank}.{os.getpid()}"
        self._put(self._file)

    def leave(self) -> None:
        """This process ends by itself."""
        with suppress(OSError):
            self._file.unlink()

    def said(self) -> None:
        """Somebody was killed, and this process says so."""
        self._put(self._file.with_name("said"))

    def _put(self, file: Path) -> None:
        with suppress(OSError):
            file.touch()


def killed(rank: int, size: int) -> str:
    """What is said where process ``rank`` of ``size`` was killed."""
    said = f"error: process {rank} of {size} was killed, and the run ends with it"
    return f"{said}\n  hint: the same command with --resume goes on from the last checkpoint\n"


def start_watchdog(rank: int, size: int) -> tuple[Path, Entry]:
    """Start it for the processes of this machine; its folder, and the entry of this process, one of ``size``."""
    folder = Path(tempfile.mkdtemp(prefix="caramba_"))
    entry = Entry(folder, rank)
    subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(folder), str(size)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # torchrun signals the groups of its processes, terminals those in front
        cwd="/",
    )
    return folder, entry


def watch(folder: Path, size: int) -> None:
    """Return once no process of the folder lives: they have left, were killed, or are killed here behind another."""
    try:
        living, gone = _processes(folder)
        while living and not gone:
            time.sleep(_POLL)
            living, gone = _processes(folder)
        until = time.monotonic() + _GRACE
        while living and time.monotonic() < until:
            time.sleep(_POLL)
            living, gone = _processes(folder)
        if living and gone and not (folder / "said").exists():
            sys.stderr.write(killed(gone[0], size))
            sys.stderr.flush()
        for number in living:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _processes(folder: Path) -> tuple[list[int], list[int]]:
    """The numbers of those that live, and the ranks of those that were killed."""
    living, gone = list[int](), list[int]()
    for entry in sorted(folder.glob("*.*")):
        rank, _, number = entry.name.partition(".")
        if lives(int(number)):
            living.append(int(number))
        elif entry.exists():  # it has not left in the meantime
            gone.append(int(rank))
    return living, gone


def lives(number: int) -> bool:
    """Whether there is a process of this number."""
    with suppress(OSError):  # where there is such a file; a process that nobody has waited for yet is a zombie
        if Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z":
            return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


if __name__ == "__main__":
    watch(Path(sys.argv[1]), int(sys.argv[2]))
