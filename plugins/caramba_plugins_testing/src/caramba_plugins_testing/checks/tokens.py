"""Who may see whom: causality, cached decoding, positions, batches."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from caramba_plugins_standard.quantized import Int4
from caramba_plugins_standard.training.documents import PackedFrame
from torch import Tensor

from caramba_core.components import Attention
from caramba_core.nn.frame import Frame
from caramba_plugins_testing.case import Case, check, require
from caramba_plugins_testing.subject import Subject, difference, inputs, require_close

__all__ = [
    "batch_independence",
    "causality",
    "decoding",
    "documents",
    "padding",
    "positions",
    "relative_positions",
    "rounding",
    "tokenwise",
    "truncation",
]

_EXACT = 1e-10
"""Relative difference of float64 results that were computed along different ways."""

_ROUNDED = Int4(block=4)


@check("no later token changes an earlier output", applies=lambda case: case.is_attention or case.is_topology)
@torch.no_grad()
def causality(case: Case) -> None:
    """Replace the tokens from each position on, and compare what comes before."""
    subject, x = Subject(case), inputs(case)
    before = subject.run(x)
    for cut in range(1, case.tokens):
        changed = torch.cat([x[:, :cut], 3 * inputs(case, seed=2)[:, cut:]], dim=1)
        after = subject.run(changed)
        words = f"is not causal: with other tokens from position {cut} on, the outputs before it change"
        require_close(after[:, :cut], before[:, :cut], _EXACT, words)
        blind = difference(after[:, cut:], before[:, cut:]) == 0.0
        require(not blind, f"ignores its input: other tokens from position {cut} on give the same outputs")


@check(
    "a layer without a cache treats each token alone", applies=lambda case: not (case.is_attention or case.is_topology)
)
@torch.no_grad()
def tokenwise(case: Case) -> None:
    """Replace all tokens but one, and compare that one's output."""
    subject, x, other = Subject(case), inputs(case), inputs(case, seed=2)
    found = []
    for kept in range(case.tokens):
        changed = torch.cat([other[:, :kept], x[:, kept : kept + 1], other[:, kept + 1 :]], dim=1)
        found.append(subject.run(changed)[:, kept])
    words = "mixes tokens: when the others change, a token's output does"
    advice = "what mixes tokens is an attention: derive from Attention and declare its cache"
    require_close(torch.stack(found, dim=1), subject.run(x), _EXACT, words, advice=advice)


def _splits(tokens: int) -> dict[str, list[int]]:
    """Ways to cut a prompt into passes."""
    half = tokens // 2
    return {
        "at once": [tokens],
        "token by token": [1] * tokens,
        "a prompt, then token by token": [half] + [1] * (tokens - half),
        "in two pieces": [half, tokens - half],
        "one token, then the rest": [1, tokens - 1],
        "all, then one token": [tokens - 1, 1],
        "in uneven pieces": [2, 3, 1, tokens - 6],
        "in random pieces": _random_pieces(tokens, 1),
        "in other random pieces": _random_pieces(tokens, 2),
    }


def _random_pieces(tokens: int, seed: int) -> list[int]:
    cuts = [at for at in range(1, tokens) if random.Random(f"{seed} {at}").random() < 0.4]
    return [last - first for first, last in pairwise([0, *cuts, tokens])]


@check("cached decoding gives what the full pass gives, however the prompt is cut")
@torch.no_grad()
def decoding(case: Case) -> None:
    """Decode several sequences in pieces of many lengths, past the first growth of the cache too."""
    subject = Subject(case)
    for tokens in (case.tokens, 70):
        x = inputs(case, batch=3, tokens=tokens)
        wanted = subject.run(x)
        splits = _splits(tokens) if tokens == case.tokens else {"60 tokens, then 1, then 9": [60, 1, 9]}
        for words, split in splits.items():
            for capacity in (None, tokens):
                cache = subject.model.new_cache(3, capacity=capacity)
                found = subject.decode(x, split, cache=cache)
                require_close(found, wanted, case.decoding_tolerance, f"decoding {words} differs from the full pass")
    if isinstance(case.config, Attention) and case.config.takes_steps:
        _steps(case)


@check(
    "sequences that start at different places see nothing of their padding",
    applies=lambda case: isinstance(case.config, Attention) and case.config.takes_starts,
)
@torch.no_grad()
def padding(case: Case) -> None:
    """Right-align sequences of unequal lengths behind other tokens, and compare with each alone."""
    subject, x = Subject(case), inputs(case, batch=3)
    starts = torch.tensor([0, 2, case.tokens - 3])
    found = {"in the full pass": subject.run(x, Frame.of(x[..., 0], starts=starts))}
    for words, split in _splits(case.tokens).items():
        found[f"decoding {words}"] = subject.decode(x, split, starts=starts)
    for row, start in enumerate(starts.tolist()):
        wanted = subject.run(x[row : row + 1, start:])
        for words, output in found.items():
            words = f"{words}, a sequence behind {start} tokens of padding differs from it alone"
            advice = "hide keys by frame.hidden_keys, or leave takes_starts out"
            require_close(output[row : row + 1, start:], wanted, case.decoding_tolerance, words, advice=advice)


@check(
    "documents that share a sequence see nothing of each other",
    applies=lambda case: isinstance(case.config, Attention) and case.config.takes_documents,
)
@torch.no_grad()
def documents(case: Case) -> None:
    """Put documents of many lengths behind each other, and compare with each alone."""
    subject, x = Subject(case), inputs(case, tokens=2 * case.tokens + 5)
    for cuts in ((1, 3), (case.tokens,), (2, case.tokens + 4)):
        bounds = list(pairwise((0, *cuts, x.shape[1])))
        lengths = torch.tensor([last - first for first, last in bounds])
        begin = torch.tensor([first for first, _ in bounds]).repeat_interleave(lengths).expand(len(x), -1)
        frame = PackedFrame(positions=torch.arange(x.shape[1]) - begin, documents=begin)
        found = subject.run(x, frame)
        wanted = torch.cat([subject.run(x[:, first:last]) for first, last in bounds], dim=1)
        words = f"documents that end behind {' and '.join(map(str, cuts))} tokens differ from each alone"
        advice = "hide keys by frame.hidden_keys and count by frame.positions, or leave takes_documents out"
        require_close(found, wanted, case.decoding_tolerance, words, advice=advice)


def _rounds(case: Case) -> bool:
    """Whether a cache that rounds would round something of what is kept."""
    config = case.config
    return isinstance(config, Attention) and any(map(_ROUNDED.quantizes, config.cache_spec(case.width).values()))


@check("what the cache rounds is what every pass attends to, the first one too", applies=_rounds)
@torch.no_grad()
def rounding(case: Case) -> None:
    """Decode through a cache in 4 bits: at once as in pieces, and not as without rounding."""
    subject, x = Subject(case), inputs(case, batch=2)
    found = {
        words: subject.decode(x, split, cache=subject.model.new_cache(2, storage=_ROUNDED))
        for words, split in _splits(case.tokens).items()
    }
    wanted = found["token by token"]
    rounded = difference(subject.run(x), wanted) >= 1e-6
    require(rounded, "a cache that rounds to 4 bits changes nothing: attend to what extend returns")
    for words, output in found.items():
        words = f"with a cache in 4 bits, decoding {words} differs from decoding token by token"
        advice = "attend to what extend returns in every pass"
        require_close(output, wanted, case.decoding_tolerance, words, advice=advice)


def _steps(case: Case) -> None:
    """Decode behind prompts of many lengths, past a full window, with rounded caches, behind padding, many at once."""
    subject, x = Subject(case), inputs(case, batch=3, tokens=2 * case.tokens + 5)
    tokens = x.shape[1]
    assert isinstance(case.config, Attention)
    padded = torch.tensor([0, 2, case.tokens - 3]) if case.config.takes_starts else None
    for prompt in (1, 2, case.tokens, 2 * case.tokens):
        for storage in (None, _ROUNDED) if _rounds(case) else (None,):
            for starts in (None, padded) if prompt >= case.tokens else (None,):
                cache, other = (subject.model.new_cache(3, capacity=tokens + 1, storage=storage) for _ in range(2))
                wanted = subject.decode(x, [prompt] + [1] * (tokens - prompt), cache=other, starts=starts)
                subject.decode(x[:, :prompt], [prompt], cache=cache, starts=starts)
                found = wanted.clone()
                for place in range(prompt, tokens):
                    frame = Frame.step(cache, torch.full((3,), place + 1), starts=starts)
                    found[:, place : place + 1] = subject.run(x[:, place : place + 1], frame)
                words = f"decode steps behind a prompt of {prompt} tokens differ from passes"
                within = max(case.decoding_tolerance, 1e-9) if storage is None else 1e-5
                advice = "write with put, read with attend_cached, and heed frame.starts; or leave takes_steps out"
                require_close(found, wanted, within, words, advice=advice)
    if _takes_back(case):  # rows that are tokens of one sequence, as a draft's tokens are checked
        cache = subject.model.new_cache(1, capacity=tokens)
        subject.decode(x[:1, :2], [2], cache=cache)
        together = subject.run(x[0, 2:, None], Frame.step(cache, torch.arange(3, tokens + 1)))
        words = "a decode step of several tokens of one sequence differs from the full pass"
        advice = "take the number of rows from the input, not from the cache"
        wanted = subject.run(x[:1])[0, 2:, None]
        require_close(together, wanted, max(case.decoding_tolerance, 1e-9), words, advice=advice)


def _takes_back(case: Case) -> bool:
    """Whether what is cached can be taken back: nothing but whole tokens, and no window."""
    return isinstance(case.config, Attention) and all(
        entry.per_token and entry.window is None for entry in case.config.cache_spec(case.width).values()
    )


@check("tokens taken back from the cache leave no trace", applies=_takes_back)
@torch.no_grad()
def truncation(case: Case) -> None:
    """Decode a wrong continuation, take it back, decode the right one."""
    subject, x = Subject(case), inputs(case)
    kept = case.tokens // 2
    cache = subject.model.new_cache(x.shape[0])
    wrong = torch.cat([x[:, :kept], inputs(case, seed=2)[:, kept:]], dim=1)
    subject.decode(wrong, [kept, case.tokens - kept], cache=cache)
    cache.truncate(kept)
    found = subject.decode(x[:, kept:], [case.tokens - kept], cache=cache)
    words = "decoding after taking tokens back differs from the full pass"
    require_close(found, subject.run(x)[:, kept:], case.decoding_tolerance, words)


@check("positions for each sequence give what positions for all give")
@torch.no_grad()
def positions(case: Case) -> None:
    """A frame's positions may be ``[T]`` or ``[B, T]``."""
    subject, x = Subject(case), inputs(case)
    frame = subject.frame(x)
    each = replace(frame, positions=frame.positions.expand(x.shape[0], -1).contiguous())
    advice = "cos and sin of [B, T] positions must broadcast over heads"
    words = "equal positions given as [B, T] change the output"
    require_close(subject.run(x, each), subject.run(x, frame), _EXACT, words, advice=advice)


@check("only distances between tokens count", applies=lambda case: case.relative)
@torch.no_grad()
def relative_positions(case: Case) -> None:
    """Start the same sequence at other positions."""
    subject, x = Subject(case), inputs(case)
    wanted = subject.run(x)
    for shift in (1, 1000):
        words = f"claims relative positions, but starting at position {shift} changes the output"
        require_close(subject.run(x, subject.frame(x, shift=shift)), wanted, 1e-9, words)


@check("a sequence's output does not depend on the others of its batch")
@torch.no_grad()
def batch_independence(case: Case) -> None:
    """Run sequences together and alone, with and without a cache."""
    subject, x = Subject(case), inputs(case, batch=3)
    half = case.tokens // 2
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "in the full pass": subject.run,
        "in decoding": lambda rows: subject.decode(rows, [half, case.tokens - half]),
    }
    for words, run in ways.items():
        alone = torch.cat([run(row[None]) for row in x])
        require_close(run(x), alone, _EXACT, f"the sequences of a batch see each other {words}: outputs differ")
