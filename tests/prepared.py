"""``python -m MODULE`` in processes that have the large libraries imported already.

A command that trains a tiny model spends two seconds importing torch, and some tenths of a second on what is tested.
Here one server (that of ``multiprocessing``) imports the libraries, and every command is a fork of it: a process of its
own with its own environment, working folder, output and signals, which imports caramba and its plugins itself.  Tests
of what is imported start a new interpreter instead.
"""

from __future__ import annotations

import atexit
import functools
import json
import multiprocessing
import os
import resource
import runpy
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import attrs

__all__ = ["Ran", "Started", "start"]

LIBRARIES = [
    *("numpy", "torch", "torch._dynamo", "torch.utils.flop_counter", "safetensors.torch"),
    *("attrs", "packaging.requirements", "pluggy", "rich.table", "tabulate", "typer", "typer.rich_utils", "yaml.cyaml"),
]
"""What the server imports: nothing of caramba."""


@attrs.frozen
class Ran:
    """A command that ended; a negative code is the number of the signal that ended it."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Both outputs, with spaces and line ends evened out."""
        return " ".join(f"{self.out} {self.err}".split())


class Started:
    """A command that runs, at most ``seconds`` long if given; ``stdout`` may be read line by line."""

    def __init__(
        self, process: BaseProcess, stdout: Connection, stderr: Connection, *, seconds: float | None = None
    ) -> None:
        self.process = process
        self._timer = threading.Timer(seconds or 0.0, process.kill)
        self._timer.daemon = True
        if seconds is not None:
            self._timer.start()
        self.stdout = os.fdopen(os.dup(stdout.fileno()), encoding="utf-8")
        self._stderr = os.fdopen(os.dup(stderr.fileno()), encoding="utf-8")
        self._errors: list[str] = []
        self._reader = threading.Thread(target=self._errors.extend, args=(self._stderr,))
        self._reader.start()

    def send_signal(self, number: int) -> None:
        """Send a signal to the process."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def ended(self) -> Ran:
        """Read the rest of its output and wait for its end."""
        with self.stdout, self._stderr:
            out = self.stdout.read()
            self._reader.join()
        self.process.join()
        self._timer.cancel()
        assert self.process.exitcode is not None
        return Ran(self.process.exitcode, out, "".join(self._errors))


def start(
    module: str,
    *arguments: str,
    cwd: Path,
    environment: Mapping[str, str],
    file_size: int | None = None,
    seconds: float | None = None,
) -> Started:
    """Start ``python -m MODULE ARGUMENTS``; no file that it writes may have more than ``file_size`` bytes, if given.

    It is killed behind so many ``seconds``.
    """
    (stdout, out), (stderr, err) = multiprocessing.Pipe(duplex=False), multiprocessing.Pipe(duplex=False)
    settings = (str(cwd), dict(environment), _start_path(), file_size)
    process = _server().Process(target=_become, args=(module, arguments, *settings, out, err))
    process.start()
    out.close()
    err.close()
    return Started(process, stdout, stderr, seconds=seconds)


def _become(
    module: str,
    arguments: tuple[str, ...],
    cwd: str,
    environment: dict[str, str],
    path: list[str],
    file_size: int | None,
    out: Connection,
    err: Connection,
) -> None:
    """Be ``python -m MODULE ARGUMENTS``, in a fork of the server."""
    for inherited in list(weakref.finalize._registry):
        inherited.atexit = False  # torch's 174 libraries of operators would be taken apart one by one
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, connection in ((1, out), (2, err)):
        os.dup2(connection.fileno(), number)
        connection.close()
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False, buffering=1, errors="backslashreplace")
    own = environment.get("PYTHONPATH")
    sys.path[:] = [cwd, *(own.split(os.pathsep) if own else ()), *path]
    sys.argv[:] = [module, *arguments]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # which processes of multiprocessing leave out


@functools.cache
def _server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    return context


@functools.cache
def _start_path() -> list[str]:
    """``sys.path`` of a new interpreter, without its first entry."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.path[1:]))"]
    found: list[str] = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
    return found
