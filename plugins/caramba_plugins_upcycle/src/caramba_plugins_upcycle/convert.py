"""Running mode ``convert``: the student's attentions start from the teacher's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Final

import torch
from caramba_plugins_standard.parallel.team import Team, together
from caramba_plugins_standard.training.planned import planned
from caramba_plugins_standard.training.windows import Windows
from caramba_terminal.numbers import format_bytes, format_duration
from torch import Tensor

from caramba_core.datasets import Tokens
from caramba_core.errors import InputError
from caramba_core.modes import Results
from caramba_core.run.context import RunContext
from caramba_plugins_upcycle.calibration import Calibration
from caramba_plugins_upcycle.modes import Convert, Start
from caramba_plugins_upcycle.stages import stages

__all__ = ["ConvertRunner", "calibration_batches", "calibration_windows", "needs"]

_REHEARSED: Final = 1e12
"""Operations behind which a conversion is rehearsed: half a minute of a small CPU, seconds of a rehearsal on a GPU."""


class ConvertRunner:
    """Artifacts: a checkpoint of the student, ``calibration.json``.

    A call that is to end does so behind a stage, and the next one goes on from there.  Processes that were started
    together divide the calibration windows, but where a transplant refines its starts on all of them.
    """

    def __init__(self, run: Convert, context: RunContext) -> None:
        self.settings = run.start
        self.context = context

    def run(self) -> Results:
        """Convert every attention that differs from the teacher's."""
        with nullcontext(Team()) if self.settings.refine else together(self.context) as self.team:
            return self._run()

    def _run(self) -> Results:
        context, settings = self.context, self.settings
        batches = calibration_batches(context, settings, team=self.team)
        own = sum(batch.numel() for batch in batches)
        tokens = int(self.team.sum(torch.tensor(own, device=context.device)))
        context.reporter.stage(
            f"convert {context.name}",
            f"{len(context.sites)} attentions start from the teacher on {tokens:,} calibration tokens; nothing trains"
            + (f", in {self.team.size} processes" if self.team.size > 1 else ""),
        )
        began = time.perf_counter()
        calibration = Calibration(
            teacher=context.teacher,
            student=context.student,
            sites=context.sites,
            settings=settings,
            converted=self._converted,
            team=self.team,
        )
        done = int(context.kept.get("step", 0))
        total = own * calibration.passes * sum(1 for _ in stages(context.student))
        with context.limit.signals.deferred():
            expected = self._expected(calibration, batches, done)
            with context.reporter.bar(context.name, total) as bar:
                calibration.progress = bar.advance
                report = calibration.run(batches, done, context.kept.get("report", {}))
        seconds = time.perf_counter() - began
        context.directory.write_json("calibration.json", report)
        context.save(0, state={"samples": 0, "tokens": 0, "seconds": seconds})
        return Results(
            entries={
                "tokens": 0,
                "calibration_tokens": tokens,
                "max_context": batches[0].shape[1],
                "convert_seconds": round(seconds, 3),
                "expected_seconds": None if expected is None else round(expected, 3),
                "phases": {name: round(each, 3) for name, each in calibration.clock.seconds.items()},
                "parameters": sum(parameter.numel() for parameter in context.student.parameters()),
            }
        )

    def _expected(self, calibration: Calibration, batches: list[Tensor], done: int) -> float | None:
        """Say about how long it will take, unless that is seconds, and how much memory, by the plan."""
        plan = planned(self.context)
        seconds = calibration.expected(batches, done) if plan.get("operations", 0) >= _REHEARSED else None
        if needed := needs(seconds, plan.get("memory", {}).get("total"), self.context.device.type):
            self.context.reporter.line(needed)
        return seconds

    def _converted(self, done: int, report: Mapping[str, Any]) -> None:
        """Behind a stage: where the call is to end, keep the student as it is by now."""
        context = self.context
        context.limit.worked()
        count = sum(1 for _ in stages(context.student))
        if any(self.team.heard(context.limit.signals, context.limit.reason is not None)) and done < count:
            context.keep(done, {"report": report})
            reason = context.limit.reason or "another process was asked to end"
            context.pause_reason = f"{reason}, {done} of {count} stages of the conversion done"
            context.pause_if_due()


def needs(seconds: float | None, size: int | None, device: str) -> str:
    """What a conversion takes, as far as that is known: ``takes about 12 min and 41.2 GiB of memory on cuda``."""
    known = [] if seconds is None else [format_duration(seconds)]
    known += [] if size is None else [f"{format_bytes(size)} of memory"]
    return f"takes about {' and '.join(known)} on {device}" if known else ""


def calibration_windows(tokens: Tokens, settings: Start, seed: int, *, skip: int = 0) -> tuple[Windows, int]:
    """The windows that calibration draws from, and how many it takes; :class:`InputError` where there are too few.

    ``skip`` are taken by something else.
    """
    length = min(settings.max_context, settings.tokens)
    windows = Windows(tokens, context=length, seed=seed)
    count = max(1, settings.tokens // length)
    if skip + count > windows.count:
        raise InputError(
            f"{tokens.origin} has {windows.count:,} windows of {length:,} tokens, too few to calibrate on",
            expected=f"{skip + count:,} windows for start.tokens: {settings.tokens}",
            hint="use fewer calibration tokens, or more text",
        )
    return windows, count


def calibration_batches(
    context: RunContext, settings: Start, *, skip: int = 0, team: Team | None = None
) -> list[Tensor]:
    """Calibration windows int64 ``[B, T]`` on the run's device, the same for a seed whatever the batch size.

    ``skip`` leaves out so many windows at first: those that something else has seen.  A process of a ``team`` gets its
    share.
    """
    windows, count = calibration_windows(context.shared.tokens("train"), settings, context.seed, skip=skip)
    team = team or Team()
    if count < team.size:
        raise InputError(
            f"run {context.run.id}: {count} calibration windows are too few for {team.size} processes",
            hint="set start.max_context lower or start.tokens higher, or convert in fewer processes",
        )
    share, batches = team.share(count), []
    for first in range(skip + share.start, skip + share.stop, settings.batch_size):
        size = min(settings.batch_size, skip + share.stop - first)
        batches.append(windows.batch(first, size)[:, :-1].to(context.device))
    return batches
