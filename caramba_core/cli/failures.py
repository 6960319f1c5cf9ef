"""Turning failures into a report on stderr and an exit code: the only place that does.

0 done, 1 internal error, 2 user error, 3 ``verify:`` not met, 4 numerical stop, 5 out of memory or disk,
130 interrupted, 141 the reader of the output is gone, 143 terminated.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

from caramba_core import __version__
from caramba_core.errors import CarambaError, InputError, ManifestError, ResourceExhausted

__all__ = ["Stopped", "guarded", "wants_json"]

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class Stopped(BaseException):
    """Ends the process with this code; a ``BaseException``, so that no handler of ordinary errors keeps it."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def guarded(run: Callable[[], Any], arguments: Sequence[str]) -> int:
    """The exit code of ``run()``; whatever it raises is reported."""
    _stop_on_sigterm()
    try:
        code = run()
        sys.stdout.flush()
    except SystemExit as ended:
        return _flushed(ended.code)
    except Stopped as stopped:
        if stopped.code == 141:
            _silence_stdout()
        return stopped.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _silence_stdout()
        return 141
    except BaseException as error:  # noqa: BLE001 - the last handler of the process
        as_json = wants_json(arguments)
        known = _as_known(error)
        if known is None:
            _report_crash(error, arguments, as_json=as_json)
            return 1
        _report(known, as_json=as_json)
        return known.exit_code
    return code if isinstance(code, int) else 0


def _flushed(code: object) -> int:
    """The code of an ordinary end, once the output is out."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _silence_stdout()
        return 141
    if code is None:
        return 0
    return code if isinstance(code, int) else 1


def _stop_on_sigterm() -> None:
    """Let a SIGTERM unwind the stack, so that locks are released and temporary files removed."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Stopped(143)

    signal.signal(signal.SIGTERM, stop)


def _silence_stdout() -> None:
    """Nobody reads our output any more: keep the interpreter from complaining when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _as_known(error: BaseException) -> CarambaError | None:
    """The user's error behind an exception, if it is one."""
    if isinstance(error, CarambaError):
        return error
    format_message = getattr(error, "format_message", None)
    if format_message is not None:  # the command line itself, refused by click or by the copy of it in typer
        return InputError(format_message(), hint="caramba --help, and --help behind each command")
    if isinstance(error, OSError) and (known := _of_the_system(error)) is not None:
        return known
    if _out_of_memory(error):
        first = str(error).splitlines()[0] if str(error) else "the allocation failed"
        return ResourceExhausted(
            f"out of memory: {first}",
            hint="a smaller batch_size or context takes less; compile --print-plan estimates what a run needs",
        )
    return None


def _of_the_system(error: OSError) -> CarambaError | None:
    """What the system refused, where that is the user's to change."""
    where = f" while writing {error.filename}" if error.filename else ""
    if error.errno in _NO_SPACE:
        return ResourceExhausted(f"no space left on the device{where}", hint="free some, or write elsewhere")
    if error.errno == errno.EFBIG:
        return ResourceExhausted(
            f"a file would be larger than is allowed{where}",
            hint="raise the limit (ulimit -f), or write to another file system",
        )
    if error.errno in _NOT_ALLOWED and error.filename:
        return InputError(
            f"{error.filename} cannot be used: {os.strerror(error.errno)}",
            hint="ask for the right to read or write it, or name another place",
        )
    return None


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    torch = sys.modules.get("torch")  # an error of torch's cannot exist before torch does
    if torch is None:
        return False
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether the command line asks for JSON: ``--json``, ``--format json``; the parse itself may be what failed."""
    options = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    pairs = zip(options, [*options[1:], ""], strict=True)
    return any(one in ("--json", "--format=json") or (one, two) == ("--format", "json") for one, two in pairs)


def _report(error: CarambaError, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_as_data(error), indent=2))  # noqa: T201 - on stdout: it is the output that was asked for
        return
    text = str(error) if isinstance(error, ManifestError) else f"error: {error}"
    print(_coloured(text) if _on_terminal() else text, file=sys.stderr)  # noqa: T201


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


def _on_terminal() -> bool:
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ


def _coloured(text: str) -> str:
    red, cyan, plain = "\x1b[1;31m", "\x1b[36m", "\x1b[0m"
    lines = []
    for line in text.splitlines():
        stripped = line.lstrip(" =")
        if stripped.startswith(("hint:", "expected:", "note:")):
            lines.append(f"{cyan}{line}{plain}")
        else:
            lines.append(line.replace("error:", f"{red}error:{plain}", 1))
    return "\n".join(lines)


def _at_fault(error: BaseException) -> str:
    """Whose code raised: the innermost frame that belongs to a plugin decides."""
    from caramba_core.plugins.metadata import CORE
    from caramba_core.plugins.registry import registry

    packages = {
        entry.value.partition(":")[0].partition(".")[0]: f"{plugin.name} {plugin.version}"
        for plugin in registry().plugins.values()
        for entry in (*plugin.hooks, *plugin.components)
    }
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    owners = [packages[top] for module in modules if (top := module.partition(".")[0]) in packages]
    return owners[-1] if owners else f"{CORE} {__version__}"


def _report_crash(error: BaseException, arguments: Sequence[str], *, as_json: bool) -> None:
    """A fault of caramba's or a plugin's: what a report of it needs, then the traceback."""
    if as_json:
        message = f"internal error of {_at_fault(error)}: {type(error).__name__}: {error}"
        hint = "please report it with the traceback on stderr"
        data = {"error": "InternalError", "exit_code": 1, "message": message, "expected": None, "hint": hint}
        print(json.dumps(data, indent=2))  # noqa: T201
    version = sys.version.split()[0]
    print(  # noqa: T201
        f"internal error: {type(error).__name__}: {error}\n"
        f"  this is a fault of {_at_fault(error)}, not of your input (python {version}, {sys.platform})\n"
        f"  command: caramba {' '.join(arguments)}\n"
        f"  please report it with the traceback below\n",
        file=sys.stderr,
    )
    traceback.print_exception(error, file=sys.stderr)
