"""What a person sees while a run goes on: stages, progress bars, lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import attrs
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from caramba_terminal.numbers import format_duration, format_speed

__all__ = ["Bar", "Reporter"]


_SHORTEST: Final = 5.0
_LONGEST: Final = 25.0
"""Seconds between two lines of progress where there is no terminal: with a step of some seconds not above 30."""


_WIDE: Final = 100
"""Characters of a terminal that has room for a long bar."""

_NARROW: Final = 12
_OTHERS: Final = 36
"""Characters of a line beside its name, bar and notes: share, speed, time left, and spaces."""


class _Speed(ProgressColumn):
    """Tokens a second, or what else is counted, from the task's own clock."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{format_speed(speed)} {task.fields['unit']}/s", style="cyan")


@attrs.frozen
class _Short:
    """What leaves room for the ``^C`` that a terminal writes behind it: a line that it broke would stay."""

    _whole: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from console.render(self._whole, options.update_width(options.max_width - 2))


class _Bars(Progress):
    def get_renderables(self) -> Iterator[_Short]:
        yield _Short(self.make_tasks_table(self.tasks))


class Bar(Protocol):
    """Progress over a number of tokens, or of what else is counted."""

    def advance(self, tokens: int) -> None:
        """Count tokens as done."""

    def note(self, *texts: str) -> None:
        """Show short texts with it (a loss), the most important first: those that there is room for."""


@attrs.frozen
class _LiveBar:
    """On a terminal: one line that moves."""

    _progress: Progress
    _task: TaskID
    _room: int
    """Characters that notes may take."""

    def advance(self, tokens: int) -> None:
        self._progress.advance(self._task, tokens)

    def note(self, *texts: str) -> None:
        shown = texts[:1]
        for text in texts[1:]:
            if len(", ".join((*shown, text))) > self._room:
                break
            shown = (*shown, text)
        self._progress.update(self._task, note=", ".join(shown))


class _PlainBar:
    """Elsewhere: a line at the first sign of progress, then one at growing intervals of up to half a minute.

    ``clock`` gives seconds.
    """

    def __init__(
        self, say: Callable[[str], None], what: str, total: int | None, done: int, unit: str, clock: Callable[[], float]
    ) -> None:
        self._say, self._what, self._total, self._unit, self._clock = say, what, total, unit, clock
        self._first = self._done = done
        self._began = self._told = clock()
        self._interval, self._note = 0.0, ""
        self._shown: tuple[int, str] | None = None

    def advance(self, tokens: int) -> None:
        self._done += tokens
        now = self._clock()
        if now - self._told >= self._interval and (self._total is None or self._done < self._total):
            self._told, self._interval = now, min(_LONGEST, max(_SHORTEST, 2 * self._interval))
            self.tell()

    def note(self, *texts: str) -> None:
        self._note = ", ".join(texts)

    def end(self) -> None:
        """Say where things stand, unless that was just said."""
        if self._shown != (self._done, self._note):
            self.tell()

    def tell(self) -> None:
        """Say where things stand."""
        seconds = self._clock() - self._began
        speed = (self._done - self._first) / seconds if seconds > 0 else 0.0
        said = [f"{self._done:,} {self._unit}"]
        if self._total is not None:
            share = f"{self._done / max(1, self._total):.0%}"
            said = [share, f"{self._done:,} of {self._total:,} {self._unit}"]
        if speed > 0:
            said.append(f"{format_speed(speed)} {self._unit}/s")
        if speed > 0 and self._total is not None and self._done < self._total:
            said.append(f"{format_duration((self._total - self._done) / speed)} left")
        if self._note:
            said.append(self._note)
        self._say(f"{self._what}: {', '.join(said)}")
        self._shown = self._done, self._note


class Reporter:
    """Writes to the terminal; plain lines where the output is not one."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console or Console(stderr=False, highlight=False)
        self.clock = clock

    def stage(self, name: str, detail: str = "") -> None:
        """Announce a stage and what it touches."""
        text = Text.assemble(("▸ ", "bold blue"), (name, "bold"), f"  {detail}" if detail else "")
        self.console.print(text, soft_wrap=not self.console.is_terminal)

    def line(self, text: str) -> None:
        """One plain line of information; what reads a pipe gets it as one line, however long."""
        self.console.print(Text(f"  {text}"), soft_wrap=not self.console.is_terminal)

    @contextmanager
    def bar(self, description: str, total: int | None, *, done: int = 0, unit: str = "tokens") -> Iterator[Bar]:
        """Progress over ``total`` tokens, with tokens/s and the time left: a bar, or lines without a terminal.

        ``unit`` names what else is counted; without a total, neither a share nor the time left is known.
        """
        if not self.console.is_terminal:
            plain = _PlainBar(self.line, description, total, done, unit, self.clock)
            yield plain
            plain.end()
            return
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=_NARROW if self.console.width < _WIDE else 28),
            TextColumn("{task.percentage:>3.0f}%" if total is not None else ""),
            _Speed(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
        )
        with _Bars(*columns, console=self.console, speed_estimate_period=60.0) as progress:
            task = progress.add_task(description, total=total, completed=done, note="", unit=unit)
            bar = _NARROW if self.console.width < _WIDE else 28
            yield _LiveBar(progress, task, self.console.width - len(description) - bar - _OTHERS)
