"""Greedy decoding through a model's cache, and mode ``generate``."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from caramba_core.modes import Results
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel
from caramba_core.run.context import RunContext
from caramba_core.storage import Storage
from caramba_plugins_standard.modes import Generate

__all__ = ["GenerateRunner", "generate", "generate_each"]


@torch.no_grad()
def generate(
    model: LanguageModel, tokens: Tensor, count: int, *, starts: Tensor | None = None, storage: Storage | None = None
) -> Tensor:
    """Greedy continuation of token ids, int64 ``[B, T]``, by ``count`` tokens: ``[B, T + count]``.

    Prompts of unequal lengths are padded on the left; ``starts``, int64 ``[B]``, says where each begins.  ``storage``
    quantizes the cache.
    """
    cache = model.new_cache(tokens.shape[0], capacity=tokens.shape[1] + count, storage=storage)
    new = tokens
    for _ in range(count):
        hidden = model.hidden(new, Frame.of(new, cache=cache, starts=starts))
        new = model.logits(hidden[:, -1]).argmax(dim=-1, keepdim=True)
        tokens = torch.cat([tokens, new], dim=1)
    return tokens


def generate_each(
    model: LanguageModel, prompts: Sequence[Sequence[int]], count: int, *, storage: Storage | None = None
) -> list[list[int]]:
    """Greedy continuations of prompts of any lengths in one batch: each prompt with its ``count`` new tokens."""
    assert prompts and all(prompts), "a prompt has at least one token"
    longest, device = max(map(len, prompts)), model.head_weight.device
    tokens = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    starts = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    out = generate(model, tokens, count, starts=starts if bool(starts.any()) else None, storage=storage)
    return [row[start:] for row, start in zip(out.tolist(), starts.tolist(), strict=True)]


class GenerateRunner:
    """Mode ``generate``: prints and records the continuation."""

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
            out = generate(model, tokens, run.max_new_tokens, storage=context.evaluation.cache)[0].tolist()
        seconds = time.perf_counter() - began
        text = tokenizer.decode(out)
        context.reporter.line(text)
        return Results(
            entries={"text": text, "generated_tokens": len(out) - tokens.shape[1], "generate_seconds": seconds}
        )
