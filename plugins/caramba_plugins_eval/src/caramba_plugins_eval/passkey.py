"""Passkey retrieval: a number stands at a random place in filler text, and the model is asked for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from caramba_plugins_standard.generation import generate_each

from caramba_core.teachers import Tokenizer, begin_of_text
from caramba_plugins_eval.likelihoods import NORMAL
from caramba_plugins_eval.metric import Figure
from caramba_plugins_eval.metrics import Passkey
from caramba_plugins_eval.subject import Subject

__all__ = ["Prompts", "found_by", "passkey", "share"]

INTRODUCTION: Final = (
    "There is an important piece of information hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about it.\n\n"
)
FILLER: Final = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
QUESTION: Final = "\n\nWhat is the pass key? The pass key is "
DIGITS: Final = 5


class Prompts:
    """Prompts of an exact length, the answer included: prompt ``n`` is a function of the seed, the length and ``n``."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.tokenizer = tokenizer
        self.seed = seed
        self.introduction = [*begin_of_text(tokenizer, None, "a prompt"), *tokenizer.encode(INTRODUCTION)]
        self.filler = tokenizer.encode(FILLER)
        self.question = tokenizer.encode(QUESTION)

    def prompt(self, length: int, index: int) -> tuple[list[int], list[int]]:
        """A prompt and its answer, ``length`` tokens together."""
        key, random = self._key(length, index)
        room = self.room(length, index)
        before = int(random.integers(0, room + 1))
        filled = [*self._fill(before), *self._needle(key), *self._fill(room - before)]
        return [*self.introduction, *filled, *self.question], self.tokenizer.encode(key)

    def room(self, length: int, index: int) -> int:
        """Tokens of filler in a prompt; negative where it does not fit."""
        key, _ = self._key(length, index)
        parts = self.introduction, self._needle(key), self.question, self.tokenizer.encode(key)
        return length - sum(map(len, parts))

    def _key(self, length: int, index: int) -> tuple[str, np.random.Generator]:
        random = np.random.default_rng([self.seed, length, index])
        return "".join(map(str, random.integers(0, 10, DIGITS))), random

    def _needle(self, key: str) -> list[int]:
        return self.tokenizer.encode(f"The pass key is {key}. Remember it. {key} is the pass key. ")

    def _fill(self, count: int) -> list[int]:
        return (self.filler * (count // len(self.filler) + 1))[:count]


def passkey(metric: Passkey, subject: Subject) -> dict[str, Figure]:
    """The share of numbers that are found at each context."""
    prompts = Prompts(subject.required_tokenizer(metric.called), subject.seed)
    return {
        str(context): share(
            found_by(
                subject,
                f"{metric.called} {context}",
                [prompts.prompt(context, index) for index in range(metric.prompts)],
                context,
            )
        )
        for context in metric.at(subject)
    }


def found_by(subject: Subject, called: str, prompts: Sequence[tuple[list[int], list[int]]], context: int) -> list[bool]:
    """Whether each prompt's answer is its greedy continuation; prompts of one length go together, by length."""
    by_length: dict[int, list[tuple[list[int], list[int]]]] = {}
    for prompt, answer in prompts:
        by_length.setdefault(len(prompt), []).append((prompt, answer))
    found, size = list[bool](), subject.settings(context).batch_size
    with subject.computing(), subject.reporter.bar(called, len(prompts) * context) as bar:
        for alike in by_length.values():
            for first in range(0, len(alike), size):
                batch = alike[first : first + size]
                count = max(len(answer) for _, answer in batch)
                rows = generate_each(subject.model, [prompt for prompt, _ in batch], count, storage=subject.storage)
                found += [
                    row[len(prompt) : len(prompt) + len(answer)] == answer
                    for row, (prompt, answer) in zip(rows, batch, strict=True)
                ]
                bar.advance(len(batch) * context)
    return found


def share(found: list[bool]) -> Figure:
    """The share, with Wilson's interval."""
    count, share = len(found), sum(found) / len(found)
    squared = NORMAL**2 / count
    middle = (share + squared / 2) / (1 + squared)
    half = NORMAL * math.sqrt(share * (1 - share) / count + squared / (4 * count)) / (1 + squared)
    return Figure(value=share, interval=(max(0.0, middle - half), min(1.0, middle + half)), worse="smaller")
