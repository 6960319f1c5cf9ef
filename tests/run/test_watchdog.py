"""The process that ends a run whose other processes cannot see that one of them was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from caramba_plugins_standard.parallel import watchdog
from caramba_plugins_standard.parallel.watchdog import Entry, killed, start_watchdog, watch

HOLDS_THE_LOCK = "import ctypes, sys; print(flush=True); ctypes.PyDLL(None).pause()"
"""As a launch may that waits for a device: no thread runs, and no handler of a signal."""


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two that hold Python's lock, with their entries in the folder ``tmp_path / "watched"``."""
    monkeypatch.setattr(watchdog, "_GRACE", 0.2)
    monkeypatch.setattr(watchdog, "_POLL", 0.01)
    (tmp_path / "watched").mkdir()
    command = [sys.executable, "-I", "-S", "-c", HOLDS_THE_LOCK]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    for rank, one in enumerate(started):
        assert one.stdout is not None
        one.stdout.readline()
        (tmp_path / "watched" / f"{rank}.{one.pid}").touch()
    yield started
    for one in started:
        one.kill()
        one.communicate()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_holds_the_lock_ends_with_another(
    rank: int, processes: list[subprocess.Popen[bytes]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    processes[rank].kill()  # nobody waits for it, so that it stays a zombie
    watch(tmp_path / "watched", 2)
    assert processes[1 - rank].wait() == -9
    assert capfd.readouterr().err == killed(rank, 2)
    assert not (tmp_path / "watched").exists()


def test_what_was_said_is_not_said_again(
    processes: list[subprocess.Popen[bytes]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "watched" / "said").touch()
    processes[0].kill()
    watch(tmp_path / "watched", 2)
    assert processes[1].wait() == -9
    assert capfd.readouterr().err == ""


def test_who_leaves_ends_nobody(
    processes: list[subprocess.Popen[bytes]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for one, entry in zip(processes, sorted((tmp_path / "watched").iterdir()), strict=True):
        entry.unlink()
        assert one.poll() is None
    watch(tmp_path / "watched", 2)
    assert all(one.poll() is None for one in processes)
    assert capfd.readouterr().err == ""
    assert not (tmp_path / "watched").exists()


def test_it_ends_with_the_last_process_of_its_machine() -> None:
    folder, first = start_watchdog(0, 2)
    second = Entry(folder, 1)
    assert sorted(entry.name for entry in folder.iterdir()) == [f"0.{os.getpid()}", f"1.{os.getpid()}"]
    first.leave()
    second.leave()
    until = time.monotonic() + 30
    while folder.exists() and time.monotonic() < until:
        os.sched_yield()
    assert not folder.exists()
    Entry(folder, 1).leave()  # where it has ended nothing happens
