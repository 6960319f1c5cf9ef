"""Multiple choice by a public rule, as tasks of lm-eval: cloze and word order over held-out text, arithmetic, copying.

    python bench/choices.py TASKS TEXT [TEXT ...] [--questions 200]
    CARAMBA_LM_EVAL_TASKS=TASKS caramba eval MODEL --metric lm_eval --set lm_eval.tasks=[cloze_french,arithmetic]

TASKS is a folder that is written: for each TEXT (such as ``DATA/text_kinds/french.txt``) ``cloze_NAME`` and
``order_NAME``, and once ``arithmetic`` and ``copying``; the names are printed.  Everything follows from the text and
the number of the question.  Four choices each, so that guessing gives a quarter:

* ``cloze``: sixty words of the text are followed by the next twelve, or by twelve from another place of it.
* ``order``: sixty words are followed by the next twelve in their order, or in three others.
* ``arithmetic``: six sums of numbers of two digits, then one to be finished; wrong by one, ten, or two digits swapped.
* ``copying``: twelve words, again and again; the third time stops, and one of the twelve comes next.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from caramba_plugins_eval.retrieval import NAMES

Question = dict[str, Any]
"""``question``, ``choices`` and ``label``, the number of the right one."""

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
"""
CHOICE = """\
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
target_delimiter: " "
metric_list: [{metric: acc}, {metric: acc_norm}]
"""

BEFORE, NEXT, CHOICES = 60, 12, 4


def asked(question: str, right: str, wrong: Iterable[str], draw: random.Random) -> Question:
    """The choices in an order that is drawn."""
    choices = [right, *wrong]
    assert len(set(choices)) == CHOICES, choices
    draw.shuffle(choices)
    return {"question": question, "choices": choices, "label": choices.index(right)}


def cloze(text: str, count: int) -> list[Question]:
    """What comes next, among what comes elsewhere in the same text."""
    words, found = text.split(), []
    for draw, at in _places(words, "cloze", count):
        others = {" ".join(words[one : one + NEXT]) for one in draw.sample(range(len(words) - NEXT), 4 * CHOICES)}
        right = " ".join(words[at : at + NEXT])
        wrong = sorted(others - {right})
        found.append(asked(" ".join(words[at - BEFORE : at]), right, draw.sample(wrong, CHOICES - 1), draw))
    return found


def order(text: str, count: int) -> list[Question]:
    """What comes next, among its own words in other orders."""
    words, found = text.split(), []
    for draw, at in _places(words, "order", count):
        right = words[at : at + NEXT]
        others = {" ".join(draw.sample(right, NEXT)) for _ in range(20)} - {" ".join(right)}
        if len(others) < CHOICES - 1:  # one word again and again
            continue
        wrong = draw.sample(sorted(others), CHOICES - 1)
        found.append(asked(" ".join(words[at - BEFORE : at]), " ".join(right), wrong, draw))
    return found


def arithmetic(count: int) -> list[Question]:
    """Sums of numbers of two digits behind six examples."""
    found = []
    for index in range(count):
        draw = random.Random(f"arithmetic {index}")
        sums = [(draw.randint(10, 99), draw.randint(10, 99)) for _ in range(7)]
        examples = "\n".join(f"{a} + {b} = {a + b}" for a, b in sums[:-1])
        a, b = sums[-1]
        right = a + b
        swapped = int(f"{str(right)[:-2]}{str(right)[-1]}{str(right)[-2]}")
        near = dict.fromkeys((swapped, right + 1, right - 10, right + 10, right - 1))
        wrong = [str(one) for one in near if one != right][: CHOICES - 1]
        found.append(asked(f"{examples}\n{a} + {b} =", str(right), wrong, draw))
    return found


def copying(count: int) -> list[Question]:
    """The next word of a list that came twice."""
    found = []
    for index in range(count):
        draw = random.Random(f"copying {index}")
        words = draw.sample(NAMES.split(), NEXT)
        stop = draw.randrange(1, NEXT)
        line = " ".join(words)
        wrong = draw.sample([word for word in words if word != words[stop]], CHOICES - 1)
        found.append(asked(f"{line}\n{line}\n{' '.join(words[:stop])}", words[stop], wrong, draw))
    return found


def _places(words: list[str], task: str, count: int) -> list[tuple[random.Random, int]]:
    """A generator and a place for each question; the text must be long enough for both."""
    if len(words) < BEFORE + NEXT + 4 * CHOICES:
        raise SystemExit(f"choices: a text of {len(words)} words is too short")
    draws = [random.Random(f"{task} {index}") for index in range(count)]
    return [(draw, draw.randrange(BEFORE, len(words) - NEXT)) for draw in draws]


def write_task(folder: Path, name: str, rows: Iterable[Mapping[str, Any]], rest: str = CHOICE) -> None:
    """A task's file and its data; ``rest`` is what the task asks of them."""
    folder.mkdir(parents=True, exist_ok=True)
    data = (folder / f"{name}.jsonl").resolve()
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=data) + rest, encoding="utf-8")


def write_tasks(folder: Path, texts: Mapping[str, str], count: int) -> list[str]:
    """All tasks; their names."""
    rules: dict[str, Callable[[str, int], list[Question]]] = {"cloze": cloze, "order": order}
    made = {f"{rule}_{name}": make(text, count) for rule, make in rules.items() for name, text in texts.items()}
    made |= {"arithmetic": arithmetic(count), "copying": copying(count)}
    for name, rows in made.items():
        write_task(folder, name, rows)
    return list(made)


def main(arguments: list[str] | None = None) -> None:
    """Write the tasks and print their names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tasks", type=Path)
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--questions", type=int, default=200, help="of each task")
    given = parser.parse_args(arguments)
    texts = {path.stem: path.read_text(encoding="utf-8") for path in given.text}
    for name in write_tasks(given.tasks, texts, given.questions):
        print(name)


if __name__ == "__main__":
    main()
