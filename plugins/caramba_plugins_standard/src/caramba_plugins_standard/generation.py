"""Generating tokens through a model's cache, greedily or by sampling, and mode ``generate``."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from caramba_core.components import Storage
from caramba_core.errors import InputError
from caramba_core.modes import Results
from caramba_core.nn.language_model import LanguageModel
from caramba_core.run.context import RunContext
from caramba_core.teachers import Tokenizer, begin_of_text, require_ids
from caramba_plugins_standard.decoding import Decoder
from caramba_plugins_standard.modes import Generate, Sampling
from caramba_plugins_standard.sampling import Sampler

__all__ = ["GenerateRunner", "continuations", "generate", "generate_each", "padded", "prompt_ids"]


@torch.no_grad()
def continuations(decoder: Decoder, logits: Tensor, count: int, sampler: Sampler) -> Iterator[Tensor]:
    """The tokens that follow those with the logits ``[B, V]``: at most ``count`` times one for each row, int64 ``[B]``.

    The only loop that takes decode steps one by one.  A step is taken when the next tokens are asked for, so that the
    last ones are not in the cache.
    """
    for left in range(count, 0, -1):
        tokens = sampler(logits)
        yield tokens
        if left > 1:
            logits = decoder.step(tokens)


def padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Prompts of any lengths as one tensor, int64 ``[B, T]``, padded on the left.

    With it, where each begins, int64 ``[B]``; ``None`` where all are equally long.
    """
    assert prompts and all(prompts), "a prompt has at least one token"
    longest = max(map(len, prompts))
    starts = [longest - len(prompt) for prompt in prompts]
    rows = [[0] * start + list(prompt) for start, prompt in zip(starts, prompts, strict=True)]
    return torch.tensor(rows, device=device), torch.tensor(starts, device=device) if any(starts) else None


@torch.no_grad()
def generate(
    model: LanguageModel,
    tokens: Tensor,
    count: int,
    *,
    starts: Tensor | None = None,
    storage: Storage | None = None,
    stops: Collection[int] = (),
    sampling: Sampling | None = None,
    seed: int | Sequence[int] = 0,
) -> Tensor:
    """Continuation of token ids, int64 ``[B, T]``, by at most ``count`` tokens: ``[B, T + N]``.

    A row that has come to one of the ids ``stops`` repeats it until every row has.  Prompts of unequal lengths are
    padded on the left; ``starts``, int64 ``[B]``, says where each begins.  ``sampling`` is greedy if not given; row
    ``b`` draws from the seed ``seed + b``, or ``seed[b]``.
    """
    require_ids(stops, model.graph.vocab_size)
    if count == 0:
        return tokens
    batch, device = tokens.shape[0], tokens.device
    decoder = Decoder(model, batch=batch, capacity=tokens.shape[1] + count, storage=storage)
    seeds = range(seed, seed + batch) if isinstance(seed, int) else seed
    sampler = Sampler(sampling or Sampling(), seeds, tokens, model.graph.vocab_size, starts)
    logits = decoder.prefill(tokens, starts=starts)
    ends = torch.tensor(sorted(stops), dtype=torch.int64, device=device)
    done = torch.zeros(batch, dtype=torch.bool, device=device)
    columns = [tokens[:, -1]]
    for new in continuations(decoder, logits, count, sampler):
        columns.append(torch.where(done, columns[-1], new))
        if stops:
            done = torch.isin(columns[-1], ends)
            if bool(done.all()):
                break
    return torch.cat([tokens, torch.stack(columns[1:], dim=1)], dim=1)


def generate_each(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    count: int,
    *,
    storage: Storage | None = None,
    stops: Collection[int] = (),
    sampling: Sampling | None = None,
    seed: int | Sequence[int] = 0,
) -> list[list[int]]:
    """Continuations of prompts of any lengths in one batch: each prompt with at most ``count`` new tokens.

    The last of them is the first of the ids ``stops`` that came.
    """
    tokens, starts = padded(prompts, model.head_weight.device)
    settings: dict[str, Any] = {"storage": storage, "stops": stops, "sampling": sampling, "seed": seed}
    out = generate(model, tokens, count, starts=starts, **settings)
    longest, rows = tokens.shape[1], []
    for row, prompt in zip(out.tolist(), prompts, strict=True):
        end = next((at for at, id_ in enumerate(row[longest:], longest + 1) if id_ in stops), len(row))
        rows.append(row[longest - len(prompt) : end])
    return rows


def prompt_ids(run: Generate, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """BOS where a run's prompt begins with it, and the ids of the prompt; :class:`InputError` where there is no id."""
    ids = tokenizer.encode(run.prompt, special_tokens=run.special_tokens)
    bos = begin_of_text(tokenizer, run.add_bos, f"run {run.id}: its prompt")
    if not bos and not ids:
        raise InputError(f"run {run.id}: the prompt holds no token", expected="a text, or add_bos: true")
    return bos, ids


class GenerateRunner:
    """Mode ``generate``: prints and records the continuation."""

    def __init__(self, run: Generate, context: RunContext) -> None:
        self.run_config = run
        self.context = context

    def run(self) -> Results:
        """One continuation through the cache that ``eval:`` describes."""
        run, context = self.run_config, self.context
        tokenizer, model = context.tokenizer, context.student
        assert tokenizer is not None  # the mode needs one
        bos, ids = prompt_ids(run, tokenizer)
        tokens = torch.tensor([[*bos, *ids]], device=context.device)
        stops: frozenset[int] = frozenset() if run.ignore_eos else tokenizer.stops
        storage, began = context.evaluation.cache, time.perf_counter()
        with context.autocast():
            settings: dict[str, Any] = {"storage": storage, "stops": stops, "sampling": run.sampling, "seed": run.seed}
            out = generate(model, tokens, run.max_new_tokens, **settings)[0].tolist()
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
