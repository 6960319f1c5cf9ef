"""Running code of plugins: nothing that it raises but a signal of the user's ends the process, and a hang is named."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib import import_module
from types import FrameType
from typing import Any, Final

__all__ = ["EscapedError", "import_guarded", "plugin_code", "what_was_raised"]

_SLOW: Final = 10.0
"""Seconds after which an import is named."""

_log = logging.getLogger("caramba.plugins")


class EscapedError(Exception):
    """What a plugin raised is no :class:`Exception` (SystemExit, KeyboardInterrupt, ...): it is the cause of this."""


def what_was_raised(error: BaseException) -> BaseException:
    """The plugin's own error behind what came out of :func:`plugin_code`."""
    return error.__cause__ or error if isinstance(error, EscapedError) else error


@contextmanager
def plugin_code(*, quiet: bool) -> Iterator[None]:
    """Code of a plugin; ``quiet``: what it prints goes to stderr, so that output for machines stays clean.

    What it raises comes out as an :class:`Exception`, unless a signal came meanwhile: Ctrl-C stays Ctrl-C.
    """
    with _signals_noted() as came, redirect_stdout(sys.stderr) if quiet else nullcontext():
        try:
            yield
        except Exception:
            raise
        except BaseException as error:
            if came:
                raise
            raise EscapedError(repr(error)).with_traceback(error.__traceback__) from error


@contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """The signals that come in the block, handled as before."""
    came: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        before[number](number, frame)

    if threading.current_thread() is threading.main_thread():
        for each in (signal.SIGINT, signal.SIGTERM):
            if callable(handler := signal.getsignal(each)):
                before[each] = handler
                signal.signal(each, note)
    try:
        yield came
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is note:  # otherwise the plugin has set one of its own
                signal.signal(number, handler)


def import_guarded(module: str, owner: str) -> Any:
    """A module of the plugin ``owner``; an import that takes long is named once, and goes on."""
    if module in sys.modules:
        return import_module(module)
    said = f"warning: importing {module} of {owner} takes more than {_SLOW:g} s: it is waited for\n"
    hint = f"  hint: Ctrl-C ends it; --no-plugin {owner.partition(' ')[0]} leaves the plugin out"
    timer = threading.Timer(_SLOW, _log.warning, (said + hint,))
    timer.daemon = True
    timer.start()
    try:
        with plugin_code(quiet=True):
            return import_module(module)
    finally:
        timer.cancel()
