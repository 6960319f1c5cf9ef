"""Generating tokens through a model's cache, greedily or by sampling, and mode ``generate``."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from caramba_core.components import Attention, Storage
from caramba_core.errors import InputError
from caramba_core.modes import Results
from caramba_core.nn.language_model import LanguageModel
from caramba_core.run.context import RunContext
from caramba_core.teachers import Tokenizer, begin_of_text, require_ids
from caramba_plugins_standard.decoding import Decoder, Rows, padded
from caramba_plugins_standard.modes import Generate, Sampling
from caramba_plugins_standard.sampling import Sampler

__all__ = ["GenerateRunner", "Prompt", "continuations", "generate", "generate_each", "generate_stream", "prompt_ids"]

_TOGETHER = 4
"""Rows of a stream wait until one in so many is free: their prompts go through the model in one pass."""


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


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids to continue by at most ``most`` tokens, sampled from a seed of their own."""

    ids: Sequence[int]
    most: int
    seed: int = 0


@torch.no_grad()
def generate_stream(
    model: LanguageModel,
    prompts: Iterable[Prompt],
    batch_size: int,
    *,
    storage: Storage | None = None,
    stops: Collection[int] = (),
    sampling: Sampling | None = None,
) -> Iterator[list[int]]:
    """The new tokens of each prompt, in the order of the prompts, which are asked for as rows of the batch get free.

    The last of them is the first of the ids ``stops`` that came.  There is one cache, whose steps are recorded once,
    and a row that is done takes the next prompt; where an attention takes no decode steps, batches follow one another.
    """
    require_ids(stops, model.graph.vocab_size)
    waiting = iter(prompts)
    coming = list(islice(waiting, batch_size))
    if not coming:
        return
    ends, sampling, size = frozenset(stops), sampling or Sampling(), len(coming)
    most = max(len(prompt.ids) + prompt.most for prompt in coming)
    rows = Rows(model, size, capacity=most, storage=storage)
    if rows.refused:
        del rows  # and its cache
        yield from _generate_batches(model, coming, waiting, storage=storage, stops=ends, sampling=sampling)
        return
    device, vocabulary = model.head_weight.device, model.graph.vocab_size
    sampler = Sampler(sampling, [0] * size, torch.zeros(size, 1, dtype=torch.int64, device=device), vocabulary)
    logits = torch.zeros(size, vocabulary, dtype=model.head_weight.dtype, device=device)
    free, running, done = list(range(size)), dict[int, tuple[int, Prompt, list[int]]](), dict[int, list[int]]()
    begun = given = 0
    while True:
        if _TOGETHER * len(free) >= size:
            coming = coming or list(islice(waiting, len(free)))
            taken, free = free[: len(coming)], free[len(coming) :]
            if coming:
                room = max(prompt.most for prompt in coming)
                logits[taken] = rows.fill(taken, [prompt.ids for prompt in coming], room).to(logits.dtype)
                sampler.begin(taken, [prompt.seed for prompt in coming], [prompt.ids for prompt in coming])
                running |= {row: (begun + at, new, []) for at, (row, new) in enumerate(zip(taken, coming, strict=True))}
            begun, coming = begun + len(coming), []
        if not running:
            return
        tokens = sampler(logits)
        ended = []
        for row, token in enumerate(tokens.tolist()):
            if row in running:
                number, prompt, new = running[row]
                new.append(token)
                if token in ends or len(new) == prompt.most:
                    ended.append(row)
                    done[number] = new
                    del running[row]
        if ended:
            rows.leave(ended)
            free += ended
        while given in done:
            yield done.pop(given)
            given += 1
        if running:
            logits = rows.step(tokens)


def _generate_batches(
    model: LanguageModel, coming: list[Prompt], waiting: Iterator[Prompt], **settings: Any
) -> Iterator[list[int]]:
    """A stream as batches, or parts of one length where an attention takes no others."""
    attentions = [node.config for node in model.graph.attentions().values()]
    unequal = all(isinstance(config, Attention) and config.takes_starts for config in attentions)
    size = len(coming)
    while coming:
        together: dict[int, list[int]] = {}
        for row, prompt in enumerate(coming):
            together.setdefault(0 if unequal else len(prompt.ids), []).append(row)
        found: dict[int, list[int]] = {}
        for part in together.values():
            batch = [coming[row] for row in part]
            ids, seeds = [prompt.ids for prompt in batch], [prompt.seed for prompt in batch]
            out = generate_each(model, ids, max(prompt.most for prompt in batch), seed=seeds, **settings)
            for row, prompt, new in zip(part, batch, out, strict=True):
                found[row] = new[len(prompt.ids) :][: prompt.most]
        yield from (found[row] for row in range(len(coming)))
        coming = list(islice(waiting, size))


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
