"""Prompts for a chat model whose answers a rule can judge, and prompts about anything.

Everything follows from a seed and the number of the prompt.  A prompt that is judged comes behind :data:`EXAMPLES`
turns of its own kind, which show what form the answer has: a small model then gets a fair share right.

* arithmetic: sums, differences, products, and short stories of them; the last number of the answer counts.
* copying: a word, a line, a code, again as it stands.
* lists: numbers in order, the day or number that follows, the first or last word of a list, a list line by line.
* formats: uppercase, brackets, yes or no, JSON with given keys.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from caramba_plugins_eval.retrieval import NAMES

__all__ = ["ABOUT", "EXAMPLES", "TASKS", "Prompt", "judged_prompts", "open_prompts"]

EXAMPLES = 2
"""Turns before a prompt that is judged."""

PASSAGE = 80
"""Words of a passage that is asked about."""

WORDS = NAMES.split()
PEOPLE = [
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Henry",
    "Iris",
    "Jonas",
    "Laura",
    "Mark",
    "Nina",
    "Oscar",
    "Paula",
    "Robert",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
PLACES = ("near the river", "behind the house", "in the garden", "on the hill", "under the bridge", "by the sea")
VERBS = ["waits", "sleeps", "stands", "falls", "shines", "breaks"]
COLORS = ["red", "green", "blue", "white", "black", "yellow"]

ASKED = (
    "What is {}?",
    "Explain {} to a child.",
    "Write a short poem about {}.",
    "Give me three facts about {}.",
    "Why does {} matter?",
    "How has {} changed over the last hundred years?",
    "What mistakes do people make about {}?",
    "Write a polite letter to a friend who knows nothing about {}.",
)
TOPICS = (
    "gravity",
    "bread",
    "the French Revolution",
    "football",
    "vaccines",
    "rivers",
    "money",
    "music",
    "sleep",
    "photography",
    "the Roman Empire",
    "electric cars",
    "chess",
    "coffee",
    "earthquakes",
    "the internet",
)
ABOUT = (
    "Summarize this text in one sentence:\n\n{}",
    "What is this text about?\n\n{}",
    "Give this text a title:\n\n{}",
    "Write the next sentence of this text:\n\n{}",
)

Message = Mapping[str, str]
Judge = Callable[[str, str], bool]
"""Whether an answer is right, given the wanted one."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is said so far, the user last.  ``wanted`` and ``judge`` are those of a prompt that a rule can judge."""

    task: str
    messages: tuple[Message, ...]
    wanted: str = ""
    judge: Judge | None = None

    def right(self, answer: str) -> bool:
        """Whether the rule takes the answer."""
        assert self.judge is not None
        return self.judge(answer.strip(), self.wanted)


def number(answer: str, wanted: str) -> bool:
    """The last number of the answer is that of the wanted one."""
    found, right = (re.findall(r"\d+", text.replace(",", "")) for text in (answer, wanted))
    return bool(found) and int(found[-1]) == int(right[-1])


def words(answer: str, wanted: str) -> bool:
    """The same words; capitals, quotation marks and a full stop at the end do not count."""
    return _plain(answer).lower() == _plain(wanted).lower()


def letters(answer: str, wanted: str) -> bool:
    """The same text but for a full stop at the end."""
    return answer.removesuffix(".") == wanted.removesuffix(".")


def items(answer: str, wanted: str) -> bool:
    """The same items in their order, whatever separates or marks them."""
    return _items(answer) == _items(wanted)


def lines(answer: str, wanted: str) -> bool:
    """The same items, each on a line of its own."""
    return items(answer, wanted) and len(answer.splitlines()) == len(wanted.splitlines())


def same_object(answer: str, wanted: str) -> bool:
    """The first object in braces is JSON and equal to the wanted one."""
    found = re.search(r"\{[^{}]*\}", answer)
    try:
        return found is not None and bool(json.loads(found[0]) == json.loads(wanted))
    except ValueError:
        return False


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.strip().strip("\"'“”").removesuffix(".").strip("\"'“”"))


def _items(text: str) -> list[str]:
    parts = re.split(r"[,\n]|\band\b", text.strip().removesuffix("."))
    found = (re.sub(r"^\s*(?:[-*•]|\d+[.)](?=\s*\D))\s*", "", part).strip().lower() for part in parts)
    return [part for part in found if part]


Asked = tuple[str, str, Judge]
"""A question, its answer, and the rule by which another answer is judged."""


def _sum(draw: random.Random) -> Asked:
    a, b = draw.randint(2, 60), draw.randint(2, 30)
    return f"What is {a} + {b}?", f"{a} + {b} = {a + b}", number


def _difference(draw: random.Random) -> Asked:
    b, left = draw.randint(1, 20), draw.randint(1, 30)
    return f"What is {b + left} - {b}?", f"{b + left} - {b} = {left}", number


def _product(draw: random.Random) -> Asked:
    a, b = draw.randint(2, 12), draw.randint(2, 9)
    return f"What is {a} times {b}?", f"{a} * {b} = {a * b}", number


def _story(draw: random.Random) -> Asked:
    who, what = draw.choice(PEOPLE), draw.choice(WORDS)
    a, b = draw.randint(2, 12), draw.randint(1, 9)
    question = f"{who} has {a} {what}s and gets {b} more. How many {what}s does {who} have now?"
    return question, f"{who} has {a} + {b} = {a + b} {what}s.", number


def _word_again(draw: random.Random) -> Asked:
    word = draw.choice(WORDS)
    return f"Repeat this word: {word}", word, words


def _line_again(draw: random.Random) -> Asked:
    line = f"The {draw.choice(COLORS)} {draw.choice(WORDS)} {draw.choice(VERBS)} {draw.choice(PLACES)}."
    return f"Repeat this sentence: {line}", line, words


def _words_again(draw: random.Random) -> Asked:
    line = " ".join(draw.sample(WORDS, draw.randint(3, 7)))
    return f"Repeat these words: {line}", line, words


def _code_again(draw: random.Random) -> Asked:
    code = "".join(draw.choices("ABCDEFGHKLMNPRSTUVWXYZ", k=2)) + f"-{draw.randint(100, 9999)}"
    return f"Repeat this code: {code}", code, letters


def _numbers(draw: random.Random) -> Asked:
    first, count = draw.randint(1, 40), draw.randint(4, 8)
    line = ", ".join(map(str, range(first, first + count)))
    return f"Write the numbers from {first} to {first + count - 1}, separated by commas.", line, items


def _next(draw: random.Random) -> Asked:
    if draw.random() < 0.5:
        at = draw.randrange(7)
        return f"Which day comes after {DAYS[at]}?", DAYS[(at + 1) % 7], words
    first = draw.randint(1, 90)
    return f"Which number comes after {first}?", str(first + 1), number


def _which(draw: random.Random) -> Asked:
    some = draw.sample(WORDS, draw.randint(3, 5))
    name, at = draw.choice((("first", 0), ("last", -1)))
    return f"What is the {name} word of this list: {', '.join(some)}?", some[at], words


def _lines(draw: random.Random) -> Asked:
    some = draw.sample(WORDS, draw.randint(3, 5))
    wanted = "\n".join(f"- {one}" for one in some)
    return f"Write this list with one word on each line: {', '.join(some)}", wanted, lines


def _upper(draw: random.Random) -> Asked:
    word = draw.choice(WORDS)
    return f"Write this word in uppercase: {word}", word.upper(), letters


def _around(draw: random.Random) -> Asked:
    some = " ".join(draw.sample(WORDS, draw.randint(2, 4)))
    return f"Put these words in brackets: {some}", f"[{some}]", letters


def _yes_or_no(draw: random.Random) -> Asked:
    a, b = draw.sample(range(1, 100), 2)
    return f"Is {a} greater than {b}? Answer yes or no.", "Yes" if a > b else "No", words


def _object(draw: random.Random) -> Asked:
    who, age, city = draw.choice(PEOPLE), draw.randint(18, 80), draw.choice(("Paris", "Rome", "Oslo", "Lima", "Cairo"))
    question = f"Write JSON with the keys name, age and city: {who} is {age} years old and lives in {city}."
    return question, json.dumps({"name": who, "age": age, "city": city}), same_object


TASKS: Mapping[str, tuple[Callable[[random.Random], Asked], ...]] = {
    "arithmetic": (_sum, _difference, _product, _story),
    "copying": (_word_again, _line_again, _words_again, _code_again),
    "lists": (_numbers, _next, _which, _lines),
    "formats": (_upper, _around, _yes_or_no, _object),
}
"""The rules of each task, which take turns."""


def judged_prompts(count: int, seed: int = 0) -> list[Prompt]:
    """The first ``count`` prompts that are judged; the tasks take turns."""
    found = []
    for index in range(count):
        turn, at = divmod(index, len(TASKS))
        task = list(TASKS)[at]
        make = TASKS[task][turn % len(TASKS[task])]
        *examples, (question, wanted, judge) = _different(make, random.Random(f"{task} {seed} {index}"))
        messages: list[Message] = []
        for asked, answer, _ in examples:
            messages += _said(user=asked, assistant=answer)
        messages += _said(user=question)
        found.append(Prompt(task=task, messages=tuple(messages), wanted=wanted, judge=judge))
    return found


def open_prompts(count: int, texts: Mapping[str, str], seed: int = 0) -> list[Prompt]:
    """``count`` prompts about topics, and as many about passages of each text, which are the task's name."""
    found = []
    for index in range(count):
        draw = random.Random(f"topics {seed} {index}")
        question = draw.choice(ASKED).format(draw.choice(TOPICS))
        found.append(Prompt(task="topics", messages=_said(user=question)))
    for name, text in texts.items():
        split = text.split()
        if len(split) < PASSAGE:
            raise SystemExit(f"prompts: {name} has {len(split)} words, fewer than a passage of {PASSAGE}")
        for index in range(count):
            draw = random.Random(f"{name} {seed} {index}")
            first = draw.randrange(len(split) - PASSAGE + 1)
            question = draw.choice(ABOUT).format(" ".join(split[first : first + PASSAGE]))
            found.append(Prompt(task=name, messages=_said(user=question)))
    return found


def _different(make: Callable[[random.Random], Asked], draw: random.Random) -> list[Asked]:
    """Examples and a question, no two of which are the same."""
    found: dict[str, Asked] = {}
    while len(found) <= EXAMPLES:
        asked = make(draw)
        found.setdefault(asked[0], asked)
    return list(found.values())


def _said(**messages: Any) -> tuple[Message, ...]:
    return tuple({"role": role, "content": content} for role, content in messages.items())
