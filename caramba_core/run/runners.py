"""What the modes ``eval`` and ``generate`` do; ``train`` is :mod:`caramba_core.run.loop`."""

from __future__ import annotations

import time

import torch

from caramba_core.errors import InputError
from caramba_core.loading import begin_of_text
from caramba_core.modes import Results
from caramba_core.run.context import RunContext
from caramba_core.run.modes import Evaluate, Generate

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
        ids = tokenizer.encode(run.prompt, special_tokens=run.special_tokens)
        bos = begin_of_text(tokenizer, run.add_bos, f"run {run.id}: its prompt")
        tokens = torch.tensor([[*bos, *ids]], device=context.device)
        if not tokens.numel():
            raise InputError(f"run {run.id}: the prompt holds no token", expected="a text, or add_bos: true")
        stops: frozenset[int] = frozenset() if run.ignore_eos else tokenizer.stops
        began = time.perf_counter()
        with context.autocast():
            out = model.generate(tokens, run.max_new_tokens, storage=context.evaluation.storage, stops=stops)[
                0
            ].tolist()
        seconds = time.perf_counter() - began
        text = tokenizer.decode(out)
        context.reporter.line(text)
        return Results(
            entries={
                "text": text,
                "begins_with_bos": bool(bos),
                "generated_tokens": len(out) - tokens.shape[1],
                "ended_by": tokenizer.decode(out[-1:]) if out[-1] in stops else None,
                "generate_seconds": seconds,
            }
        )
