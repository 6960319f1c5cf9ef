"""What the modes ``eval`` and ``generate`` do; ``train`` is :mod:`caramba_plugins_standard.training.loop`."""

from __future__ import annotations

import time

import torch

from caramba_core.modes import Results
from caramba_core.run.context import RunContext
from caramba_plugins_standard.modes import Evaluate, Generate

__all__ = ["EvaluateRunner", "GenerateRunner"]


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
