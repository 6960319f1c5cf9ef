"""The modes that the core brings: train, eval, generate.  A plugin adds others in ``caramba.mode``.

A mode is a class with one method ``run(context) -> Results``; ``convert`` comes from the upcycle distribution.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any, Protocol

import attrs
import torch

from caramba_core.component import evolve
from caramba_core.errors import InputError
from caramba_core.manifest.schema import Train as Settings
from caramba_core.plugins.registry import registry
from caramba_core.run.context import RunContext
from caramba_core.run.determinism import deterministic
from caramba_core.run.loop import TrainingLoop
from caramba_core.run.measuring import Perplexities
from caramba_core.run.reporter import short_count

__all__ = ["Evaluate", "Generate", "Mode", "Results", "Train"]


@attrs.frozen(kw_only=True)
class Results:
    """What a mode adds to ``summary.json``, and whether the run came to its end."""

    done: bool = True
    entries: dict[str, Any] = attrs.field(factory=dict)


class Mode(Protocol):
    """What an entry of ``caramba.mode`` gives: a class without arguments."""

    def run(self, context: RunContext) -> Results:
        """Do it; artifacts go to ``context.directory``."""
        ...


class Train:
    """Train the student with the run's strategy; measure before and after."""

    def run(self, context: RunContext) -> Results:
        """Artifacts: checkpoints, metrics, likelihoods of teacher, start and end."""
        run = context.run
        assert run.train is not None
        assert run.steps is not None
        settings = evolve(
            run.train,
            optimizer=run.train.optimizer or _default("optimizer", "adamw"),
            schedule=run.train.schedule or _default("schedule", "cosine"),
        )
        perplexities = Perplexities(context)
        perplexities.before()
        with deterministic(run.id) if settings.deterministic else nullcontext():
            loop = self._trained(context, settings, run.steps)
        if loop.step < run.steps and context.stop_reason is None:
            return Results(done=False)
        entries: dict[str, Any] = {
            "tokens": loop.step * loop.tokens_a_step,
            "steps": loop.step,
            "train_seconds": round(loop.seconds, 3),
            "trained_parameters": sum(parameter.numel() for parameter in loop.parameters),
            "parameters": sum(parameter.numel() for parameter in context.student.parameters()),
        }
        if loop.step < run.steps:
            context.reporter.line(f"{run.id} ended at step {loop.step} of {run.steps}: {context.stop_reason}")
            entries["stop_reason"] = context.stop_reason
        return Results(entries={**entries, **perplexities.after(step=loop.step)})

    def _trained(self, context: RunContext, settings: Settings, steps: int) -> TrainingLoop:
        """The loop, at its end or where something asked it to stop."""
        run = context.run
        loop = TrainingLoop(context, settings, steps)
        loop.prepare()
        trained = sum(parameter.numel() for parameter in loop.parameters)
        total = sum(parameter.numel() for parameter in context.student.parameters())
        context.reporter.stage(
            f"train {run.id}",
            f"{', '.join(settings.trains)}: {short_count(trained)} of {short_count(total)} parameters train, "
            f"{steps} steps of {loop.tokens_a_step:,} tokens on {context.device.type}",
        )
        if settings.compile:
            torch.compiler.reset()  # graphs of an earlier run of this process count against dynamo's limit
            models = [context.student, *([context.teacher] if settings.strategy.needs_teacher else [])]
            left = [name for model in models for name in model.compile_blocks()]
            if left:
                context.reporter.line(
                    f"not compiled, as each has sizes of its own: {len(left)} layers, {left[0]} first"
                )
        all_tokens = steps * loop.tokens_a_step
        with context.reporter.bar(run.id, all_tokens, done=loop.step * loop.tokens_a_step) as bar:
            loop.run(bar)
        return loop


class Evaluate:
    """Measure a run's result, or the teacher where there is none, on the held-out tokens."""

    def run(self, context: RunContext) -> Results:
        """Artifacts: likelihoods of teacher and student."""
        perplexities = Perplexities(context)
        perplexities.before()
        return Results(entries=perplexities.after())


class Generate:
    """Continue a prompt greedily, through the model's own cache."""

    def run(self, context: RunContext) -> Results:
        """Prints and records the continuation."""
        tokenizer = context.shared.tokenizer
        prompt = context.run.prompt
        if tokenizer is None or prompt is None:
            missing = (
                "a prompt (key: prompt)"
                if prompt is None
                else "a tokenizer: the teacher's checkpoint carries none that can be read"
            )
            raise InputError(f"run {context.run.id} needs {missing}")
        model = context.student
        tokens = torch.tensor([tokenizer.encode(prompt)], device=context.device)
        began = time.perf_counter()
        with context.autocast():
            out = model.generate(tokens, context.run.max_new_tokens, storage=context.evaluation.storage)[0].tolist()
        seconds = time.perf_counter() - began
        text = tokenizer.decode(out)
        context.reporter.line(text)
        return Results(
            entries={"text": text, "generated_tokens": len(out) - tokens.shape[1], "generate_seconds": seconds}
        )


def _default(kind: str, name: str) -> Any:
    plugins = registry()
    return plugins.load(plugins.find([kind], name))()
