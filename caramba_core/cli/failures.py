"""Turning failures into a report on stderr and an exit code: the only place that does.

0 done, 1 internal error, 2 user error, 3 ``verify:`` not met, 4 numerical stop, 5 out of memory or disk,
130 interrupted, 141 the reader of the output is gone, 143 terminated.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import FrameType
from typing import Any, NoReturn

from caramba_terminal.lines import coloured, fitted
from caramba_terminal.signals import Interrupted

from caramba_core import __version__
from caramba_core.errors import CarambaError, InputError, ManifestError, ResourceExhausted

__all__ = ["Stopped", "guarded", "wants_json"]


class Stopped(BaseException):
    """Ends the process with this code; a ``BaseException``, so that no handler of ordinary errors keeps it."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _Warnings(logging.Handler):
    """Warnings on stderr, as lines that fit the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        print(fitted(record.getMessage(), sys.stderr), file=sys.stderr)  # noqa: T201


class InternalError(CarambaError):
    """A fault of caramba's or of a plugin's."""

    exit_code = 1


def guarded(run: Callable[[], Any], arguments: Sequence[str]) -> int:
    """The exit code of ``run()``; whatever it raises is reported."""
    signal.signal(signal.SIGTERM, _terminate)
    warnings, handler = logging.getLogger("caramba"), _Warnings()
    warnings.addHandler(handler)
    try:
        code = _exit_code(run)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except Interrupted as error:
        print(error.said, file=sys.stderr)  # noqa: T201
        code = 128 + error.number
    except BrokenPipeError:
        code = 141
    except BaseException as error:  # noqa: BLE001 - the last handler of the process
        as_json = wants_json(arguments)
        known = _as_known(error) or _crash(error, arguments)
        if as_json:
            print(json.dumps(_as_data(known), indent=2))  # noqa: T201 - on stdout: it is the output that was asked for
        elif not isinstance(known, InternalError):
            print(_as_text(known), file=sys.stderr)  # noqa: T201
        code = known.exit_code
    finally:
        warnings.removeHandler(handler)
    if code == 141:  # nobody reads our output any more: the interpreter would complain when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _exit_code(run: Callable[[], Any]) -> int:
    """What an ordinary end amounts to."""
    try:
        code = run()
    except (SystemExit, Stopped) as ended:
        code = ended.code
    return 0 if code is None else code if isinstance(code, int) else 1


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Let a SIGTERM unwind the stack, so that locks are released and temporary files removed."""
    raise Stopped(143)


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether the command line asks for JSON: ``--json``, ``--format json``; the parse itself may be what failed."""
    options = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    return not {"--json", "--format=json"}.isdisjoint(options) or ("--format", "json") in pairwise(options)


def _as_known(error: BaseException) -> CarambaError | None:
    """The user's error behind an exception, if it is one."""
    if isinstance(error, CarambaError):
        return error
    format_message = getattr(error, "format_message", None)
    if format_message is not None:  # the command line itself, refused by click or by the copy of it in typer
        return InputError(format_message(), hint="caramba --help, and --help behind each command")
    if _is_out_of_memory(error):
        first = str(error).partition("\n")[0] or "the allocation failed"
        hint = "a smaller batch_size or context takes less; compile --print-plan estimates what a run needs"
        return ResourceExhausted(f"out of memory: {first}", hint=hint)
    if not isinstance(error, OSError):
        return None
    where = f" while writing {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhausted(f"no space left on the device{where}", hint="free some, or write elsewhere")
    if error.errno == errno.EFBIG:
        hint = "raise the limit (ulimit -f), or write to another file system"
        return ResourceExhausted(f"a file would be larger than is allowed{where}", hint=hint)
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and error.filename:
        hint = "it, or the folder that it lies in, was removed meanwhile, or cannot be made"
        return InputError(f"{error.filename} is not there: {os.strerror(error.errno)}", hint=hint)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP) and error.filename:
        hint = "ask for the right to read or write it, or name another place"
        return InputError(f"{error.filename} cannot be used: {os.strerror(error.errno)}", hint=hint)
    if error.errno in (errno.EEXIST, errno.EISDIR, errno.ENXIO) and error.filename:
        hint = "something else stands there: move it away, or name another place"
        return InputError(f"{error.filename} cannot be used: {os.strerror(error.errno)}", hint=hint)
    if error.errno == errno.ENAMETOOLONG and error.filename:
        return InputError(f"{error.filename} cannot be used: {os.strerror(error.errno)}", hint="choose a shorter name")
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")  # an error of torch's cannot exist before torch does
    return (
        isinstance(error, MemoryError if torch is None else (MemoryError, torch.OutOfMemoryError))
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def _crash(error: BaseException, arguments: Sequence[str]) -> InternalError:
    """A fault of caramba's or a plugin's: says on stderr what a report of it needs, then the traceback."""
    said, culprit = f"{type(error).__name__}: {error}", _at_fault(error)
    print(  # noqa: T201
        f"internal error: {said}\n"
        f"  this is a fault of {culprit}, not of your input (python {sys.version.split()[0]}, {sys.platform})\n"
        f"  command: caramba {' '.join(arguments)}\n"
        f"  please report it with the traceback below\n",
        file=sys.stderr,
    )
    traceback.print_exception(error, file=sys.stderr)
    return InternalError(f"internal error of {culprit}: {said}", hint="please report it with the traceback on stderr")


def _at_fault(error: BaseException) -> str:
    """Whose code raised: the innermost frame that belongs to a plugin decides."""
    from caramba_core.plugins.registry import registry

    plugins = registry().plugins.values()
    packages = {one.value.partition(":")[0].partition(".")[0]: plugin for plugin in plugins for one in plugin.entries}
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    owners = [packages[top] for module in modules if (top := module.partition(".")[0]) in packages]
    return f"{owners[-1].name} {owners[-1].version}" if owners else f"caramba-core {__version__}"


def _as_data(error: CarambaError) -> dict[str, Any]:
    data: dict[str, Any] = {
        "error": type(error).__name__,
        "exit_code": error.exit_code,
        "message": error.message,
        "expected": error.expected,
        "hint": error.hint,
    }
    if isinstance(error, ManifestError):
        data["problems"] = [problem.to_dict() for problem in error.problems]
    return data


def _as_text(error: CarambaError) -> str:
    """The report for people, in colours on a terminal, where long lines break between words."""
    text = str(error) if isinstance(error, ManifestError) else f"error: {error}"
    return coloured(fitted(text, sys.stderr), sys.stderr)
