"""Choosing the next token from logits: the processors of transformers' ``generate`` as pure functions, and draws.

Every function takes logits or probabilities ``[B, V]`` and gives new ones; a token that is ruled out has the logit
minus infinity.

Axes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from caramba_plugins_standard.modes import Sampling

__all__ = [
    "Draws",
    "Sampler",
    "apply_temperature",
    "draw",
    "keep_min_p",
    "keep_top_k",
    "keep_top_p",
    "penalize_repetition",
    "process",
    "tokens_seen",
]

_CHUNK: Final = 64
"""Random numbers that are drawn and moved to the device at a time."""


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits of the tokens that are ``seen``, bool ``[B, V]``: divided by the penalty, negative ones multiplied.

    Keskar et al. 2019, arXiv 1909.05858.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits over the temperature: below 1 the likely tokens become likelier."""
    return logits / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Rule out what is below the ``k``-th largest logit; all that equal it stay."""
    smallest = torch.topk(logits, min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the likeliest tokens that together have the probability ``p``, and at least one.

    Holtzman et al. 2020, arXiv 1904.09751.
    """
    ascending, order = torch.sort(logits, descending=False)
    ruled_out = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    ruled_out[:, -1] = False
    return logits.masked_fill(ruled_out.scatter(1, order, ruled_out), -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Rule out what has less than ``p`` times the probability of the likeliest token (arXiv 2407.01082)."""
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(dim=-1, keepdim=True), -torch.inf)


def process(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> Tensor:
    """Logits as a draw is made from them, in transformers' order; float32, or float64 where they are.

    ``seen``, bool ``[B, V]``, are the tokens that a repetition penalty is for.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if sampling.repetition_penalty is not None:
        assert seen is not None, "the penalty needs to know the tokens before"
        logits = penalize_repetition(logits, seen, sampling.repetition_penalty)
    if sampling.greedy:
        return logits
    if sampling.temperature is not None:
        logits = apply_temperature(logits, sampling.temperature)
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None and sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = keep_min_p(logits, sampling.min_p)
    return logits


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """One token of each row, int64 ``[B]``, by inverting its distribution function at numbers in [0, 1) ``[B]``.

    Tokens of probability 0 are never drawn, whatever rounding does; rows need not add up to 1.
    """
    cumulative = probabilities.to(uniforms.dtype).cumsum(dim=-1)
    total = cumulative[:, -1:]
    found = torch.searchsorted(cumulative, uniforms[:, None] * total, right=True)[:, 0]
    return torch.minimum(found, (cumulative < total).sum(dim=-1))


def tokens_seen(tokens: Tensor, vocabulary: int, starts: Tensor | None = None) -> Tensor:
    """Which ids stand in tokens ``[B, T]``, from each row's ``starts`` ``[B]`` on: bool ``[B, V]``."""
    places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    counted = torch.ones_like(tokens) if starts is None else (places >= starts[:, None]).long()
    return tokens.new_zeros(tokens.shape[0], vocabulary).scatter_add(1, tokens, counted) > 0


class Draws:
    """Numbers in [0, 1), one for each row a time; a row's follow from its seed alone, whatever rows are beside it."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self._device = device
        self._generators = [torch.Generator() for _ in seeds]
        self._ahead = [torch.empty(0, dtype=self._dtype) for _ in seeds]  # drawn, and not moved yet
        self._numbers = torch.empty(0, len(seeds), dtype=self._dtype, device=device)
        self._at = 0
        self.begin(range(len(seeds)), seeds)

    def next(self) -> Tensor:
        """The next number of each row, ``[B]``."""
        if self._at == len(self._numbers):
            self._numbers, self._at = self._drawn(range(len(self._generators)), _CHUNK), 0
        self._at += 1
        return self._numbers[self._at - 1]

    def begin(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """Let these rows begin anew, from seeds of their own."""
        for row, seed in zip(rows, seeds, strict=True):
            self._generators[row].manual_seed(seed % 2**63)
            self._ahead[row] = self._ahead[row][:0]
        if self._at < len(self._numbers):
            self._numbers[self._at :, list(rows)] = self._drawn(rows, len(self._numbers) - self._at)

    def _drawn(self, rows: Sequence[int], count: int) -> Tensor:
        """The next numbers of some rows, ``[count, K]``; they are drawn in chunks, whenever they are asked for."""
        for row in rows:
            if len(self._ahead[row]) < count:
                new = torch.rand(_CHUNK, generator=self._generators[row], dtype=self._dtype)
                self._ahead[row] = torch.cat([self._ahead[row], new])
        parts = torch.stack([self._ahead[row][:count] for row in rows], dim=1)
        for row in rows:
            self._ahead[row] = self._ahead[row][count:]
        return parts.to(self._device)


class Sampler:
    """Chooses a token of each sequence as ``sampling`` says; ``seeds`` has one seed for each.

    ``tokens``, int64 ``[B, T]``, are the prompts, which begin at ``starts`` ``[B]``: a repetition penalty counts them.
    """

    def __init__(
        self, sampling: Sampling, seeds: Sequence[int], tokens: Tensor, vocabulary: int, starts: Tensor | None = None
    ) -> None:
        self.sampling = sampling
        self.vocabulary = vocabulary
        self.draws = Draws(seeds, tokens.device)
        penalized = sampling.repetition_penalty is not None
        self.seen = tokens_seen(tokens, vocabulary, starts) if penalized else None

    def __call__(self, logits: Tensor) -> Tensor:
        """The next token of each sequence, int64 ``[B]``, given its logits ``[B, V]``."""
        processed = process(logits, self.sampling, self.seen)
        if self.sampling.greedy:
            chosen = processed.argmax(dim=-1)
        else:
            chosen = draw(processed.softmax(dim=-1), self.draws.next())
        self.note(chosen[:, None])
        return chosen

    def begin(self, rows: Sequence[int], seeds: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Let other sequences begin in these rows, with seeds and prompts of their own."""
        self.draws.begin(rows, seeds)
        if self.seen is not None:
            for row, prompt in zip(rows, prompts, strict=True):
                self.seen[row] = tokens_seen(self.seen.new_tensor([prompt], dtype=torch.int64), self.vocabulary)[0]

    def note(self, tokens: Tensor) -> None:
        """Count tokens ``[B, T]`` as seen."""
        if self.seen is not None:
            self.seen = self.seen.scatter(1, tokens, True)
