"""Mode ``convert``: start the student's attentions from the teacher and measure what that alone gives."""

from __future__ import annotations

import time

from torch import Tensor

from caramba_core.errors import InputError
from caramba_core.manifest.schema import Start
from caramba_core.run.batches import Windows
from caramba_core.run.checkpoint import save_checkpoint
from caramba_core.run.context import RunContext
from caramba_core.run.measuring import Perplexities
from caramba_core.run.modes import Results
from caramba_plugins_upcycle.calibration import Calibration
from caramba_plugins_upcycle.stages import stages

__all__ = ["Convert"]


class Convert:
    """Registered as ``convert`` in ``caramba.mode``."""

    def run(self, context: RunContext) -> Results:
        """Artifacts: a checkpoint of the student, ``calibration.json``, likelihoods of teacher and student."""
        settings = context.run.start or Start()
        if not context.sites:
            raise InputError(
                f"run {context.run.id} has nothing to convert: the manifest's attentions are the teacher's own",
                hint="change the attention in model.topology, or drop this run",
            )
        if settings.cache_budget is not None:
            raise InputError(
                f"run {context.run.id}: start.cache_budget is divided by mode allocate, and this run converts",
                hint="run mode allocate first, then convert the manifest that it writes",
            )
        perplexities = Perplexities(context)
        perplexities.before(start_is_teacher=True)
        batches = calibration_batches(context, settings)
        tokens = sum(batch.numel() for batch in batches)
        context.reporter.stage(
            f"convert {context.run.id}",
            f"{len(context.sites)} attentions start from the teacher on {tokens:,} calibration tokens; nothing trains",
        )
        began = time.perf_counter()
        with context.reporter.bar(context.run.id, tokens * sum(1 for _ in stages(context.student))) as bar:
            calibration = Calibration(
                teacher=context.teacher,
                student=context.student,
                sites=context.sites,
                settings=settings,
                progress=bar.advance,
            )
            report = calibration.run(batches)
        seconds = time.perf_counter() - began
        context.directory.write_json("calibration.json", report)
        save_checkpoint(
            context.directory.checkpoint(0),
            model=context.student,
            optimizer=None,
            state={
                "step": 0,
                "samples": 0,
                "tokens": 0,
                "seconds": seconds,
                "tokenizer": context.shared.identity,
            },
        )
        entries = {
            "tokens": 0,
            "calibration_tokens": tokens,
            "max_context": batches[0].shape[1],
            "convert_seconds": round(seconds, 3),
            "parameters": sum(parameter.numel() for parameter in context.student.parameters()),
        }
        return Results(entries={**entries, **perplexities.after()})


def calibration_batches(context: RunContext, settings: Start, *, skip: int = 0) -> list[Tensor]:
    """Calibration windows int64 ``[B, T]`` on the run's device, the same for a seed whatever the batch size.

    ``skip`` leaves out so many windows at first: those that something else has seen.
    """
    length = min(settings.max_context, settings.tokens)
    windows = Windows(context.shared.tokens("train"), context=length, seed=context.seed)
    count = max(1, settings.tokens // length)
    if skip + count > windows.count:
        raise InputError(
            f"{windows.tokens.origin} has {windows.count} windows of {length} tokens, too few to calibrate on",
            expected=f"{skip + count} windows for start.tokens: {settings.tokens}",
            hint="use fewer calibration tokens, or more text",
        )
    batches = []
    for first in range(skip, skip + count, settings.batch_size):
        size = min(settings.batch_size, skip + count - first)
        batches.append(windows.batch(first, size)[:, :-1].to(context.device))
    return batches
