"""When a call of ``caramba run`` ends before its runs do: between two units of work, and never before the first."""

from __future__ import annotations

import time

from caramba_terminal.signals import Interrupted, Signals

__all__ = ["Limit", "Paused"]


class Paused(Exception):  # noqa: N818 - nothing went wrong
    """A run stops here, and goes on from here another time: what it did is kept."""


class Limit:
    """The signals and the time limit of a call.

    Units of work are what is done at once: a batch of windows measured, a training step, a conversion.  Whoever does
    one calls :meth:`worked` behind it, and asks for :attr:`reason` before the next: so every call gets further.
    """

    def __init__(self, signals: Signals | None = None, minutes: float | None = None) -> None:
        self.signals = signals or Signals()
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self._has_worked = False

    def worked(self) -> None:
        """Count a unit of work."""
        self._has_worked = True

    @property
    def reason(self) -> str | None:
        """Why the call is to end, in words; ``None`` where it may go on."""
        if self.signals.pending is not None:
            return str(Interrupted(self.signals.pending))
        if self._deadline is not None and self._has_worked and time.monotonic() >= self._deadline:
            return "the time limit of this call was reached"
        return None
