"""Signals that end a run behind its step: the step is finished and saved before the process ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, ClassVar

__all__ = ["Interrupted", "Signals", "pass_on", "signals_held"]


class Interrupted(BaseException):
    """A signal ended the runs; ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    @property
    def said(self) -> str:
        """What the user is told."""
        return f"{self}; the same command with --resume goes on"


class Signals:
    """SIGINT and SIGTERM while runs are done.

    A signal ends the run at once, but for the first one that comes in a block of :meth:`deferred`: it is ``pending``.
    """

    last: ClassVar[int | None] = None
    """The last signal that this process received."""

    def __init__(self) -> None:
        self.pending: int | None = None
        self._deferred = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """What the process calls."""
        Signals.last = number
        if not self._deferred or self.pending is not None:
            raise Interrupted(number)
        self.pending = number

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Work that is to be finished and saved (a training step), and that asks for ``pending`` itself."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    def raise_pending(self) -> None:
        """End with a signal that came."""
        if self.pending is not None:
            raise Interrupted(self.pending)


@contextmanager
def signals_held() -> Iterator[Signals]:
    """Receive signals until the block ends; in other threads than the main one nothing is received."""
    held, before = Signals(), dict[int, Any]()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, held.receive)
    try:
        yield held
    finally:
        for received, handler in before.items():
            with suppress(TypeError):  # a handler that was not set from Python
                signal.signal(received, handler)


def pass_on(number: int) -> None:
    """Give the main thread a signal that another process of its runs got; nothing where it has got one, or holds none.

    Called in another thread.
    """
    receiver = getattr(signal.getsignal(number), "__self__", None)
    if isinstance(receiver, Signals) and receiver.pending is None:
        signal.pthread_kill(threading.main_thread().ident or 0, number)
