"""Greedy decoding through a model's cache, and mode ``generate``."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from caramba_core.errors import InputError
from caramba_core.loading import begin_of_text
from caramba_core.modes import Results
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel
from caramba_core.run.context import RunContext
from caramba_core.storage import Storage
from caramba_plugins_standard.modes import Generate

__all__ = ["GenerateRunner", "generate", "generate_each"]


@torch.no_grad()
def generate(
    model: LanguageModel,
    tokens: Tensor,
    count: int,
    *,
    starts: Tensor | None = None,
    storage: Storage | None = None,
    stops: Collection[int] = (),
) -> Tensor:
    """Greedy continuation of token ids, int64 ``[B, T]``, by at most ``count`` tokens: ``[B, T + N]``.

    A row that has come to one of the ids ``stops`` repeats it until every row has.  Prompts of unequal lengths are
    padded on the left; ``starts``, int64 ``[B]``, says where each begins.
    """
    cache = model.new_cache(tokens.shape[0], capacity=tokens.shape[1] + count, storage=storage)
    ends = torch.tensor(sorted(stops), dtype=torch.int64, device=tokens.device)
    new, done = tokens, torch.zeros(tokens.shape[0], 1, dtype=torch.bool, device=tokens.device)
    for _ in range(count):
        hidden = model.hidden(new, Frame.of(new, cache=cache, starts=starts))
        following = model.logits(hidden[:, -1]).argmax(dim=-1, keepdim=True)
        new = torch.where(done, new[:, -1:], following)
        tokens = torch.cat([tokens, new], dim=1)
        if stops:
            done = torch.isin(new, ends)
            if bool(done.all()):
                break
    return tokens


def generate_each(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    count: int,
    *,
    storage: Storage | None = None,
    stops: Collection[int] = (),
) -> list[list[int]]:
    """Greedy continuations of prompts of any lengths in one batch: each prompt with at most ``count`` new tokens.

    The last of them is the first of the ids ``stops`` that came.
    """
    assert prompts and all(prompts), "a prompt has at least one token"
    longest, device = max(map(len, prompts)), model.head_weight.device
    tokens = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    starts = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    unequal = starts if bool(starts.any()) else None
    out = generate(model, tokens, count, starts=unequal, storage=storage, stops=stops)
    rows = []
    for row, start in zip(out.tolist(), starts.tolist(), strict=True):
        end = next((at for at, id_ in enumerate(row[longest:], longest + 1) if id_ in stops), len(row))
        rows.append(row[start:end])
    return rows


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
        ids = tokenizer.encode(run.prompt, special_tokens=run.special_tokens)
        bos = begin_of_text(tokenizer, run.add_bos, f"run {run.id}: its prompt")
        tokens = torch.tensor([[*bos, *ids]], device=context.device)
        if not tokens.numel():
            raise InputError(f"run {run.id}: the prompt holds no token", expected="a text, or add_bos: true")
        stops: frozenset[int] = frozenset() if run.ignore_eos else tokenizer.stops
        storage, began = context.evaluation.cache, time.perf_counter()
        with context.autocast():
            out = generate(model, tokens, run.max_new_tokens, storage=storage, stops=stops)[0].tolist()
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
