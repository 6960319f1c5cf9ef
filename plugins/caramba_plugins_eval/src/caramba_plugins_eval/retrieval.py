"""Retrieval by rule, in the manner of RULER (arXiv 2404.06654): what is asked stands somewhere in filler text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import attrs
import numpy as np
from caramba_plugins_standard.generation import generate_each

from caramba_core.teachers import Tokenizer, begin_of_text
from caramba_plugins_eval.likelihoods import NORMAL
from caramba_plugins_eval.metric import Figure
from caramba_plugins_eval.metrics import Passkey, Retrieval
from caramba_plugins_eval.subject import Subject

__all__ = ["Haystacks", "retrieval"]

INTRODUCTION: Final = (
    "There is an important piece of information hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about it.\n\n"
)
FILLER: Final = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
PASSKEY_QUESTION: Final = "\n\nWhat is the pass key? The pass key is "

NAMES: Final = (
    "apple anchor basket bottle bridge butter candle carpet castle circle coffee copper corner cotton desert dragon "
    "engine family forest garden guitar hammer island jacket kitchen ladder lemon marble market mirror needle orange"
)
"""What numbers are given to."""

DIGITS: Final = 5
MOST: Final = 9
"""The greatest number that counting asks for."""


@attrs.frozen(kw_only=True)
class _Asked:
    """Sentences that are hidden, in their order, the question at the end, and its answer."""

    hidden: list[str]
    question: str
    answer: str


class Haystacks:
    """Prompts of an exact length, the answer included: a function of the seed, the task, the length and the number."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.tokenizer = tokenizer
        self.seed = seed
        self.introduction = [*begin_of_text(tokenizer, None, "a prompt"), *tokenizer.encode(INTRODUCTION)]
        self.filler = tokenizer.encode(FILLER)

    def prompt(self, task: str, length: int, index: int) -> tuple[list[int], list[int]]:
        """A prompt and its answer, ``length`` tokens together: the sentences stand at random places of the filler."""
        asked, random = self._asked(task, length, index)
        room = self.room(task, length, index)
        places = np.sort(random.integers(0, room + 1, len(asked.hidden)))
        ids, filled = list(self.introduction), 0
        for place, sentence in zip(places, asked.hidden, strict=True):
            ids += [*self._fill(int(place) - filled), *self.tokenizer.encode(sentence)]
            filled = int(place)
        ids += [*self._fill(room - filled), *self.tokenizer.encode(asked.question)]
        return ids, self.tokenizer.encode(asked.answer)

    def room(self, task: str, length: int, index: int) -> int:
        """Tokens of filler in a prompt; negative where it does not fit."""
        asked, _ = self._asked(task, length, index)
        parts = (*asked.hidden, asked.question, asked.answer)
        return length - len(self.introduction) - sum(len(self.tokenizer.encode(part)) for part in parts)

    def _asked(self, task: str, length: int, index: int) -> tuple[_Asked, np.random.Generator]:
        random = np.random.default_rng([self.seed, length, index, *(b"" if task == "passkey" else task.encode())])
        return _TASKS[task](random), random

    def _fill(self, count: int) -> list[int]:
        return (self.filler * (count // len(self.filler) + 1))[:count]


def _number(random: np.random.Generator) -> str:
    return "".join(map(str, random.integers(0, 10, DIGITS)))


def _named(random: np.random.Generator, count: int) -> list[str]:
    names = NAMES.split()
    return [names[at] for at in random.permutation(len(names))[:count]]


def _passkey(random: np.random.Generator) -> _Asked:
    key = _number(random)
    hidden = [f"The pass key is {key}. Remember it. {key} is the pass key. "]
    return _Asked(hidden=hidden, question=PASSKEY_QUESTION, answer=key)


def _needles(random: np.random.Generator, count: int) -> _Asked:
    names = _named(random, count)
    numbers = [_number(random) for _ in names]
    hidden = [f"The number of the {name} is {number}. " for name, number in zip(names, numbers, strict=True)]
    at = int(random.integers(count))
    return _Asked(
        hidden=hidden,
        question=f"\n\nWhat is the number of the {names[at]}? The number of the {names[at]} is ",
        answer=numbers[at],
    )


def _variables(random: np.random.Generator, hops: int = 2, chains: int = 2) -> _Asked:
    """Chains of assignments, ``hops`` beyond a number; sentences of all chains mixed, each chain's in its order."""
    names = iter(_named(random, chains * (hops + 1)))
    made, last = list[list[str]](), list[tuple[str, str]]()
    for _ in range(chains):
        number, name = _number(random), next(names)
        sentences = [f"The value of {name} is {number}. "]
        for _ in range(hops):
            name, before = next(names), name
            sentences.append(f"The value of {name} is the value of {before}. ")
        made.append(sentences)
        last.append((name, number))
    order = random.permutation(np.repeat(np.arange(chains), hops + 1))
    left = [iter(sentences) for sentences in made]
    name, number = last[0]
    return _Asked(
        hidden=[next(left[chain]) for chain in order],
        question=f"\n\nWhat number is the value of {name}? The value of {name} is the number ",
        answer=number,
    )


def _counting(random: np.random.Generator) -> _Asked:
    count = int(random.integers(1, MOST + 1))
    return _Asked(
        hidden=["The bell rang once. "] * count,
        question="\n\nHow many times did the bell ring in this text, in digits? The number of times that it rang is ",
        answer=str(count),
    )


_TASKS: Final = {
    "passkey": _passkey,
    "single": lambda random: _needles(random, 1),
    "many": lambda random: _needles(random, 8),
    "variables": _variables,
    "counting": _counting,
}


def retrieval(metric: Passkey | Retrieval, subject: Subject) -> dict[str, Figure]:
    """The share of prompts that are answered, of each task at each context."""
    haystacks = Haystacks(subject.required_tokenizer(metric.called), subject.seed)
    found = {}
    for name, task in metric.asked.items():
        for context in metric.at(subject):
            prompts = [haystacks.prompt(task, context, index) for index in range(metric.prompts)]
            found[f"{name}{context}"] = _share(_found(subject, f"{metric.called} {name}{context}", prompts, context))
    return found


def _found(subject: Subject, called: str, prompts: Sequence[tuple[list[int], list[int]]], context: int) -> list[bool]:
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


def _share(found: list[bool]) -> Figure:
    """The share, with Wilson's interval."""
    count, share = len(found), sum(found) / len(found)
    squared = NORMAL**2 / count
    middle = (share + squared / 2) / (1 + squared)
    half = NORMAL * math.sqrt(share * (1 - share) / count + squared / (4 * count)) / (1 + squared)
    return Figure(value=share, interval=(max(0.0, middle - half), min(1.0, middle + half)), worse="smaller")
