"""Signals that end a run behind its step: the step is finished and saved before the process ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

__all__ = ["Interrupted", "Signals", "signals_held"]


class Interrupted(BaseException):
    """A signal ended the run, which is saved; ``number`` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Signals:
    """SIGINT and SIGTERM while runs are done.

    ``waits`` says whether the run is at work on something that it can finish and save (a training step): then the first
    signal is kept in ``pending``.  At any other time, and from the second on, a signal ends the run at once.
    """

    def __init__(self) -> None:
        self.waits = False
        self.pending: int | None = None

    def receive(self, number: int, frame: FrameType | None) -> None:
        """What the process calls."""
        if not self.waits or self.pending is not None:
            raise Interrupted(number)
        self.pending = number

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
