"""What the core's modes do: train, measure, generate."""

from __future__ import annotations

import time
from contextlib import nullcontext

import torch

from caramba_core.formatting import format_count
from caramba_core.modes import Results
from caramba_core.run.context import RunContext
from caramba_core.run.determinism import deterministic
from caramba_core.run.loop import TrainingLoop
from caramba_core.run.modes import Evaluate, Generate, Train

__all__ = ["EvaluateRunner", "GenerateRunner", "TrainRunner"]


class TrainRunner:
    """Artifacts: checkpoints, and a line of metrics for each step."""

    def __init__(self, run: Train, context: RunContext) -> None:
        self.run_config = run
        self.context = context

    def run(self) -> Results:
        """Train to the last step, or to where something asked to stop."""
        run, context = self.run_config, self.context
        with deterministic(run.id) if run.train.deterministic else nullcontext():
            loop = self._trained()
        if loop.step < run.steps and context.stop_reason is None:
            return Results(done=False)
        entries = {
            "tokens": loop.step * loop.tokens_a_step,
            "steps": loop.step,
            "train_seconds": round(loop.seconds, 3),
            "trained_parameters": sum(parameter.numel() for parameter in loop.parameters),
            "parameters": sum(parameter.numel() for parameter in context.student.parameters()),
        }
        if loop.step < run.steps:
            context.reporter.line(f"{run.id} ended at step {loop.step} of {run.steps}: {context.stop_reason}")
            return Results(entries={**entries, "stop_reason": context.stop_reason})
        return Results(entries=entries)

    def _trained(self) -> TrainingLoop:
        """The loop, at its end or where something asked it to stop."""
        run, context = self.run_config, self.context
        settings = run.train.complete()
        loop = TrainingLoop(context, settings, run.steps)
        loop.prepare()
        trained = sum(parameter.numel() for parameter in loop.parameters)
        total = sum(parameter.numel() for parameter in context.student.parameters())
        context.reporter.stage(
            f"train {run.id}",
            f"{', '.join(settings.trains)}: {format_count(trained)} of {format_count(total)} parameters train, "
            f"{run.steps} steps of {loop.tokens_a_step:,} tokens on {context.device.type}",
        )
        if settings.compile:
            torch.compiler.reset()  # graphs of an earlier run of this process count against dynamo's limit
            models = [context.student, *([context.teacher] if settings.strategy.needs_teacher else [])]
            left = [name for model in models for name in model.compile_blocks()]
            if left:
                context.reporter.line(
                    f"not compiled, as each has sizes of its own: {len(left)} layers, {left[0]} first"
                )
        all_tokens = run.steps * loop.tokens_a_step
        with context.reporter.bar(run.id, all_tokens, done=loop.step * loop.tokens_a_step) as bar:
            loop.run(bar)
        return loop


class EvaluateRunner:
    """Nothing beside what is measured before every run."""

    def __init__(self, run: Evaluate, context: RunContext) -> None:
        pass

    def run(self) -> Results:
        """Nothing to add."""
        return Results()


class GenerateRunner:
    """Prints and records the continuation."""

    def __init__(self, run: Generate, context: RunContext) -> None:
        self.run_config = run
        self.context = context

    def run(self) -> Results:
        """One greedy continuation through the cache that ``eval:`` describes."""
        run, context = self.run_config, self.context
        tokenizer, model = context.tokenizer, context.student
        assert tokenizer is not None  # the mode needs one
        tokens = torch.tensor([tokenizer.encode(run.prompt)], device=context.device)
        began = time.perf_counter()
        with context.autocast():
            out = model.generate(tokens, run.max_new_tokens, storage=context.evaluation.storage)[0].tolist()
        seconds = time.perf_counter() - began
        text = tokenizer.decode(out)
        context.reporter.line(text)
        return Results(
            entries={"text": text, "generated_tokens": len(out) - tokens.shape[1], "generate_seconds": seconds}
        )
