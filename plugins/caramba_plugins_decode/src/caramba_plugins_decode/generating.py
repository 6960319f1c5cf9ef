"""What ``caramba generate`` does: one prompt as it is continued, or a file of prompts in batches."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, Protocol

import attrs
import typer
from caramba_plugins_standard.decoding import Decoder, padded
from caramba_plugins_standard.generation import continuations
from caramba_plugins_standard.modes import Sampling
from caramba_plugins_standard.sampling import Sampler
from caramba_terminal.numbers import format_bytes

from caramba_core.errors import InputError
from caramba_plugins_decode.prompts import Prompt
from caramba_plugins_decode.session import Session
from caramba_plugins_decode.source import TextModel
from caramba_plugins_decode.speculative import SpeculativeSession, require_pair
from caramba_plugins_decode.text import Answer

__all__ = [
    "Speed",
    "Texts",
    "Wanted",
    "continue_file",
    "continue_one",
    "new_session",
    "printable",
    "tell_drafts",
    "tokens_in_words",
]


@attrs.frozen(kw_only=True)
class Wanted:
    """What is asked for: how tokens are chosen, and where an answer ends."""

    sampling: Sampling = attrs.field(factory=Sampling)
    seed: int = 0
    max_new_tokens: int = 128
    stops: tuple[str, ...] = ()
    ignore_eos: bool = False
    add_bos: bool | None = None

    @property
    def words(self) -> str:
        """How tokens are chosen, for people."""
        if self.sampling.greedy:
            return "greedy (--temperature T samples)"
        return f"sampled with seed {self.seed}"

    def answer(self, model: TextModel, prompt: Sequence[int], most: int | None = None) -> Answer:
        """An empty answer to a prompt, of at most so many tokens (``max_new_tokens`` if not given)."""
        wanted = most or self.max_new_tokens
        room = model.room(len(prompt), wanted)
        return Answer(
            model.tokenizer,
            prompt,
            most=room,
            limit="length" if room == wanted else "context",
            ends=() if self.ignore_eos else model.tokenizer.stops,
            stops=self.stops,
        )


class Texts(Protocol):
    """What continues one text after the other."""

    @property
    def bytes(self) -> int:
        """Bytes of its caches as allocated."""

    def tokens(self, prompt: Sequence[int], count: int, sampling: Sampling, seed: int) -> Iterator[int]:
        """At most ``count`` tokens that follow a prompt."""


def new_session(model: TextModel, draft: TextModel | None, draft_tokens: int | None, length: float) -> Texts:
    """A session with or without a draft model; raises :class:`InputError` for two that do not go together."""
    if draft is None:
        return Session(model)
    session: SpeculativeSession
    require_pair(model, draft, length)
    session = SpeculativeSession(model, draft, draft_tokens)
    return session


class Speed:
    """Time and tokens of answers: those behind an answer's first token are what decoding takes."""

    def __init__(self) -> None:
        self.tokens = 0
        self.steps = 0
        self.seconds = 0.0
        self.prefill_seconds = 0.0

    def watch(self, tokens: Iterable[int]) -> Iterator[int]:
        """The same tokens, counted and timed."""
        began = time.perf_counter()
        first = True
        for token in tokens:
            now = time.perf_counter()
            if first:
                self.prefill_seconds += now - began
            else:
                self.seconds += now - began
                self.steps += 1
            self.tokens += 1
            first = False
            yield token
            began = time.perf_counter()

    @property
    def per_second(self) -> float | None:
        """Tokens a second; ``None`` where nothing was decoded."""
        return self.steps / self.seconds if self.steps and self.seconds else None

    @property
    def words(self) -> str:
        """The same for people."""
        return "" if self.per_second is None else f" at {self.per_second:.1f} tokens/s"


_CONTROL: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""What would steer a terminal, and how it is shown instead."""


def printable(text: str) -> str:
    """A text as a terminal may be given it: what a model writes must not steer it.  In a pipe it stays as it is."""
    return text.translate(_CONTROL) if sys.stdout.isatty() else text


def tokens_in_words(count: int) -> str:
    """``1 token``, ``2,000 tokens``."""
    return f"{count:,} token{'' if count == 1 else 's'}"


def tell_drafts(texts: Texts) -> str:
    """How much of what was drafted was accepted, for people; empty without a draft model."""
    if not isinstance(texts, SpeculativeSession) or not texts.drafted:
        return ""
    return f"; {texts.accepted / texts.drafted:.0%} of {texts.drafted:,} drafted tokens accepted"


def continue_one(model: TextModel, texts: Texts, prompt: str, wanted: Wanted, *, as_json: bool) -> None:
    """Continue one prompt: its text on stdout as it comes, or one JSON object at the end."""
    ids = model.encode(prompt, wanted.add_bos)
    answer, speed = wanted.answer(model, ids), Speed()
    try:
        for token in speed.watch(texts.tokens(ids, answer.most, wanted.sampling, wanted.seed)):
            piece = answer.add(token)
            if piece and not as_json:
                typer.echo(printable(piece), nl=False)
            if answer.finish is not None:
                break
    except KeyboardInterrupt:
        typer.echo(err=True)  # what the shell says next begins a line of its own
        raise
    if as_json:
        timing = {"tokens_per_second": speed.per_second, "prefill_seconds": speed.prefill_seconds}
        sizes: dict[str, Any] = {"cache_bytes": texts.bytes}
        if isinstance(texts, SpeculativeSession):
            sizes |= {"drafted_tokens": texts.drafted, "accepted_tokens": texts.accepted}
        typer.echo(json.dumps({**_result(answer, len(ids)), "greedy": wanted.sampling.greedy, **timing, **sizes}))
        return
    if not answer.text.endswith("\n"):
        typer.echo()
    prefill = f"{len(ids):,} of the prompt ({speed.prefill_seconds:.2f} s)"
    typer.echo(
        f"[{tokens_in_words(answer.tokens)}{speed.words} after {prefill}; {_ended(answer)}; {wanted.words}; "
        f"cache {format_bytes(texts.bytes)}{tell_drafts(texts)}]",
        err=True,
    )


def _ended(answer: Answer) -> str:
    """Why an answer ended, for people."""
    if answer.finish in ("end", "stop"):
        return f"ended by {answer.ended_by!r}"
    return {"length": "ended by --max-new-tokens", "context": "the model's context is full"}[str(answer.finish)]


def _result(answer: Answer, prompt_tokens: int) -> dict[str, Any]:
    return {
        "text": answer.text,
        "prompt_tokens": prompt_tokens,
        "new_tokens": answer.tokens,
        "finish": answer.finish,
        "ended_by": answer.ended_by,
    }


# ------------------------------------------------------------------------------------------------ files


@attrs.frozen(kw_only=True)
class _Job:
    """A prompt that can be continued, and what becomes of it."""

    line: int
    ids: list[int]
    answer: Answer


def continue_file(
    model: TextModel,
    texts: Texts | None,
    prompts: Iterator[Prompt],
    wanted: Wanted,
    *,
    batch_size: int,
) -> int:
    """Continue the prompts of a file, ``batch_size`` at a time; how many failed.

    One JSON object a line goes to stdout, in the order of the prompts; ``texts`` continues them one by one where it is
    given.  A prompt that cannot be continued has a line with ``error``.  No more than a batch is held at a time.
    """
    unequal = all(config.takes_starts for config in model.attentions.values())
    if batch_size > 1 and not unequal:
        problem = "an attention of this model takes no prompts of unequal lengths in one batch"
        typer.echo(f"note: {problem}: only those of a length go together", err=True)
    done = failed = 0
    largest, speed = 0, Speed()
    while batch := list(islice(prompts, batch_size)):
        results: dict[int, dict[str, Any]] = {}
        jobs = []
        for prompt in batch:
            about = {"line": prompt.line} | ({} if prompt.id is None else {"id": prompt.id})
            try:
                jobs.append(_job(model, prompt, wanted))
                results[prompt.line] = about
            except InputError as error:
                results[prompt.line] = {**about, "error": error.message}
                failed += 1
        for together in _batches(jobs, unequal=unequal):
            if texts is not None:
                for job in together:
                    _continue_alone(texts, job, wanted, speed)
                largest = max(largest, texts.bytes)
            else:
                largest = max(largest, _continue_together(model, together, wanted, speed))
        for job in jobs:
            results[job.line] |= _result(job.answer, len(job.ids))
        for result in results.values():
            typer.echo(json.dumps(result))
        sys.stdout.flush()
        done += len(batch)
    typer.echo(
        f"[{done:,} prompts, {failed:,} failed; {speed.tokens:,} new tokens{speed.words}; {wanted.words}; "
        f"largest cache {format_bytes(largest)}{'' if texts is None else tell_drafts(texts)}]",
        err=True,
    )
    return failed


def _job(model: TextModel, prompt: Prompt, wanted: Wanted) -> _Job:
    if prompt.error is not None:
        raise InputError(prompt.error)
    ids = model.encode(prompt.text, wanted.add_bos)
    return _Job(line=prompt.line, ids=ids, answer=wanted.answer(model, ids, prompt.max_new_tokens))


def _batches(jobs: Sequence[_Job], *, unequal: bool) -> Iterator[Sequence[_Job]]:
    """Jobs that go through the model together: all, or those whose prompts are equally long."""
    if unequal:
        return iter([jobs] if jobs else [])
    by_length: dict[int, list[_Job]] = {}
    for job in jobs:
        by_length.setdefault(len(job.ids), []).append(job)
    return iter(by_length.values())


def _continue_alone(texts: Texts, job: _Job, wanted: Wanted, speed: Speed) -> None:
    for token in speed.watch(texts.tokens(job.ids, job.answer.most, wanted.sampling, _seed(wanted, job))):
        job.answer.add(token)
        if job.answer.finish is not None:
            break


def _continue_together(model: TextModel, jobs: Sequence[_Job], wanted: Wanted, speed: Speed) -> int:
    """Continue prompts in one batch; the bytes of its cache."""
    count = max(job.answer.most for job in jobs)
    tokens, starts = padded([job.ids for job in jobs], model.model.head_weight.device)
    decoder = Decoder(model.model, batch=len(jobs), capacity=tokens.shape[1] + count, storage=model.storage)
    seeds = [_seed(wanted, job) for job in jobs]
    sampler = Sampler(wanted.sampling, seeds, tokens, model.graph.vocab_size, starts)
    began = time.perf_counter()
    logits = decoder.prefill(tokens, starts=starts)
    speed.prefill_seconds += time.perf_counter() - began
    for new in continuations(decoder, logits, count, sampler):
        open_ = [
            (job.answer, token) for job, token in zip(jobs, new.tolist(), strict=True) if job.answer.finish is None
        ]
        for answer, token in open_:
            answer.add(token)
        speed.tokens += len(open_)
        if all(job.answer.finish is not None for job in jobs):
            break
    speed.steps = speed.tokens
    speed.seconds += time.perf_counter() - began
    return decoder.cache.bytes


def _seed(wanted: Wanted, job: _Job) -> int:
    """A prompt's own seed, so that its text does not depend on the others."""
    return wanted.seed + job.line - 1
