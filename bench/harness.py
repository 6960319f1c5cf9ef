"""lm-eval over caramba's model beside lm-eval's own model of transformers, on one text, as JSON lines.

    python bench/harness.py TEXT MODEL EXPORTED [--context 256] [--questions 24] [--tasks DIR]

MODEL is what caramba opens (a run, a file, a folder), EXPORTED the folder that ``caramba export MODEL`` wrote.  Two
tasks are made of the text and written to DIR, where ``CARAMBA_LM_EVAL_TASKS=DIR caramba eval MODEL --metric lm_eval``
finds them: ``rolling`` is the likelihood of the whole text; ``cloze`` asks for the last word of a sentence, the wrong
answers being the last words of the three sentences behind it, in an order that follows from the question's number.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from caramba_plugins_eval.likelihoods import rolling
from caramba_plugins_eval.metrics import Rolling
from caramba_plugins_eval.opening import Asked, open_subject
from caramba_plugins_lm_eval.model import CarambaLM
from caramba_terminal.reporter import Reporter
from choices import write_task
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from rich.console import Console

ROLLING = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
"""


def say(**record: Any) -> None:
    """One JSON line."""
    print(json.dumps(record), flush=True)


def questions(text: str, count: int) -> list[dict[str, Any]]:
    """The first sentences of 8 to 40 words as questions about their last words."""
    sentences = [one.split() for one in re.split(r"(?<=[.!?])\s+", text)]
    good = [one for one in sentences if 8 <= len(one) <= 40 and one[-1][:-1].isalpha()]
    found = []
    for index in range(min(count, len(good) - 3)):
        words = [one[-1][:-1] for one in good[index : index + 4]]
        choices = list(dict.fromkeys(words))
        random.Random(index).shuffle(choices)
        question = " ".join(good[index][:-1])
        found.append({"question": question, "choices": choices, "label": choices.index(words[0])})
    return found


def write_tasks(folder: Path, text: str, count: int) -> list[dict[str, Any]]:
    """Both tasks with their data; the questions."""
    asked = questions(text, count)
    write_task(folder, "rolling", [{"page": text}], ROLLING)
    write_task(folder, "cloze", asked)
    return asked


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("model")
    parser.add_argument("exported")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--tasks", type=Path, default=Path("lm_eval_tasks"))
    arguments = parser.parse_args()
    asked = write_tasks(arguments.tasks, arguments.text.read_text(encoding="utf-8"), arguments.questions)
    how = Asked(data=(str(arguments.text),), context=arguments.context, device="cpu")
    subject = open_subject(arguments.model, how, Reporter(Console(quiet=True))).subject
    with subject.computing():
        figures = rolling(Rolling(context=arguments.context), subject)
    say(event="caramba eval", **{name: figure.value for name, figure in figures.items()})
    options: dict[str, Any] = {
        "device": "cpu",
        "dtype": "float32",
        "max_length": arguments.context,
        "logits_cache": False,
    }
    made = {
        "caramba": lambda: CarambaLM(subject, context=arguments.context),
        "transformers": lambda: HFLM(pretrained=arguments.exported, **options),
    }
    pairs = [SimpleNamespace(args=(row["question"], f" {choice}")) for row in asked for choice in row["choices"]]
    scores: dict[str, list[float]] = {}
    manager = TaskManager(include_path=str(arguments.tasks), include_defaults=False)
    for name, make in made.items():
        model, began = make(), time.monotonic()
        settings: dict[str, Any] = {"bootstrap_iters": 0, "log_samples": False, "task_manager": manager}
        with subject.computing():
            results = simple_evaluate(model=model, tasks=["rolling", "cloze"], **settings)["results"]
            scores[name] = [score for score, _ in model.loglikelihood(pairs)]
        for task, numbers in results.items():
            known = {key.removesuffix(",none"): value for key, value in numbers.items() if isinstance(value, float)}
            say(event="lm-eval", model=name, task=task, **known)
        say(event="time", model=name, seconds=round(time.monotonic() - began, 1))
    differences = [abs(a - b) for a, b in zip(*scores.values(), strict=True)]
    say(
        event="choices",
        count=len(differences),
        mean=sum(scores["caramba"]) / len(pairs),
        largest_difference=max(differences),
    )


if __name__ == "__main__":
    main()
