"""What a person sees while a run goes on: stages, progress bars, lines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["Bar", "Reporter"]


class _TokenSpeed(ProgressColumn):
    """Tokens a second, from the task's own clock."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} tokens/s", style="cyan")


@attrs.frozen
class Bar:
    """One progress bar over a known number of tokens."""

    _progress: Progress
    _task: TaskID

    def advance(self, tokens: int) -> None:
        """Count tokens as done."""
        self._progress.advance(self._task, tokens)

    def note(self, text: str) -> None:
        """Show a short text behind the bar (a loss)."""
        self._progress.update(self._task, note=text)


class Reporter:
    """Writes to the terminal; plain lines where the output is not one."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=False, highlight=False)

    def stage(self, name: str, detail: str = "") -> None:
        """Announce a stage and what it touches."""
        self.console.print(Text.assemble(("▸ ", "bold blue"), (name, "bold"), f"  {detail}" if detail else ""))

    def line(self, text: str) -> None:
        """One plain line of information."""
        self.console.print(Text(f"  {text}"))

    @contextmanager
    def bar(self, description: str, tokens: int, *, done: int = 0) -> Iterator[Bar]:
        """A progress bar over ``tokens`` tokens with tokens/s and the time left."""
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.percentage:>3.0f}%"),
            _TokenSpeed(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, speed_estimate_period=60.0) as progress:
            task = progress.add_task(description, total=tokens, completed=done, note="")
            yield Bar(progress, task)
