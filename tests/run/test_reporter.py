"""Progress where there is no terminal: lines that a person and ``grep`` can read, not too many of them."""

from __future__ import annotations

import io
import itertools
import re

from caramba_terminal.reporter import Reporter
from rich.console import Console


def said(tokens: int, steps: int, seconds: float, *, done: int = 0, fail: bool = False) -> list[str]:
    """What a bar says over steps that take equally long."""
    text, now = io.StringIO(), [0.0]
    reporter = Reporter(Console(file=text, width=80), clock=lambda: now[0])
    try:
        with reporter.bar("half/finetune", tokens, done=done) as bar:
            for step in range(steps):
                now[0] += seconds
                bar.advance((tokens - done) // steps)
                bar.note(f"loss {step}")
            if fail:
                raise KeyError
    except KeyError:
        pass
    return text.getvalue().splitlines()


def test_lines_come_at_once_and_then_at_growing_intervals() -> None:
    lines = said(1000, 100, 3.0)
    assert lines[0] == "  half/finetune: 1%, 10 of 1,000 tokens, 3 tokens/s, 297 s left"
    assert lines[-1] == "  half/finetune: 100%, 1,000 of 1,000 tokens, 3 tokens/s, loss 99"
    percent = [int(line.split("%")[0].rpartition(" ")[2]) for line in lines]
    seconds = [3 * each for each in percent]
    gaps = [after - before for before, after in itertools.pairwise(seconds)]
    assert max(gaps) <= 30
    assert gaps[0] <= 9
    assert len(lines) < 20


def test_less_than_one_a_second_is_not_none() -> None:
    assert said(100, 100, 16.0)[0] == "  half/finetune: 1%, 1 of 100 tokens, 0.062 tokens/s, 26 min left"


def test_one_step_after_the_other_is_not_a_line_each() -> None:
    assert len(said(10_000, 1000, 0.001)) == 2


def test_a_run_that_goes_on_counts_its_own_speed() -> None:
    lines = said(1000, 5, 10.0, done=500)
    assert lines[0].startswith("  half/finetune: 60%, 600 of 1,000 tokens, 10 tokens/s, 40 s left")


def test_nothing_more_is_said_behind_a_failure() -> None:
    assert said(100, 1, 1.0, fail=True) == []
    assert "50%" in said(100, 2, 1.0)[0]


def test_long_lines_stay_whole_in_a_pipe() -> None:
    text = io.StringIO()
    Reporter(Console(file=text, width=80)).line("x" * 300)
    assert text.getvalue() == f"  {'x' * 300}\n"


def test_what_was_just_said_is_not_said_again() -> None:
    text, now = io.StringIO(), [0.0]
    with Reporter(Console(file=text, width=80), clock=lambda: now[0]).bar("perplexity", 100) as bar:
        now[0] += 1
        bar.advance(25)
    assert text.getvalue().count("25%") == 1


def test_a_bar_leaves_room_for_what_a_terminal_writes_behind_it() -> None:
    """``^C`` in the last columns would break the line, and its first half would stay on the screen."""
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=True, color_system=None, legacy_windows=False)
    with Reporter(console).bar("perplexity of a teacher", 64) as bar:
        bar.advance(64)
        bar.note("135.657, and some more")
    drawn = re.sub(r"\x1b\[[^m]*?[A-Za-z]", "\r", text.getvalue()).replace("\n", "\r").split("\r")
    assert 70 < max(map(len, drawn)) <= 78
