"""Answers of chat models beside their teacher's: right by rule, and divergence along what it says, as JSON lines.

    python bench/answers.py TEACHER [TEXT ...] [--model NAME=SOURCE ...] [--cache full ...] [--prompts 300] [--open 32]
                                    [--device cuda] [--dtype bfloat16]

Every model reads the same prompts by the teacher's chat template and answers greedily; ``bench/prompts.py`` makes them.
SOURCE is a run's folder, a Hugging Face folder or a GGUF file; each ``--cache`` is one more line of every model, the
teacher's own rounded caches too.  Of ``--prompts`` prompts that a rule can judge: the share of right answers in each
task, with Wilson's interval, and the points more than the teacher's, with a paired one.  Along the teacher's own
answers to these, to ``--open`` prompts about topics and as many about passages of each TEXT (such as
``DATA/text_kinds/questions.txt``): KL(teacher || it) of each token of the answer, and how often both hold the same
token the likeliest; intervals are over prompts.  ``mean`` and ``worst`` are over kinds of prompts.

On one GPU, with a run of bench/chats.yml:

    python bench/answers.py SmolLM2.gguf DATA/text_kinds/*.txt --model distil=runs/chats/half_int8/distil \\
        --model answers=runs/chats/half_int8/answers --cache full --cache int8 --dtype bfloat16
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from caramba_plugins_decode.source import Opening, TextModel, open_text_model
from caramba_plugins_standard.chat_template import ChatTemplate, chat_template_of
from caramba_plugins_standard.generation import generate_each
from caramba_plugins_standard.perplexity import hidden_states
from torch import Tensor

from caramba_core.components import Storage
from caramba_core.nn.language_model import LanguageModel

try:
    from kinds import cached, commit, stored
    from prompts import Prompt, judged_prompts, open_prompts
except ImportError:  # as part of the package that tests import
    from bench.kinds import cached, commit, stored
    from bench.prompts import Prompt, judged_prompts, open_prompts

NORMAL = 1.96
"""Standard errors on either side of a mean that hold 95 % of a normal distribution."""

LOGIT_ROWS = 512
"""Tokens whose logits are held at once, of both models."""


def answers(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    most: int,
    stops: frozenset[int],
    storage: Storage | None,
    batch: int,
) -> list[list[int]]:
    """The greedy answers to prompts, of at most so many tokens, with the token that ended them."""
    found: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    for first in range(0, len(order), batch):
        here = order[first : first + batch]
        out = generate_each(model, [prompts[at] for at in here], most, storage=storage, stops=stops)
        for at, ids in zip(here, out, strict=True):
            found[at] = ids[len(prompts[at]) :]
    return found


@torch.inference_mode()
def compared(
    model: LanguageModel,
    teacher: LanguageModel,
    prompts: Sequence[Sequence[int]],
    said: Sequence[Sequence[int]],
    storage: Storage | None,
    batch: int,
) -> np.ndarray[tuple[int, int], Any]:
    """Of each prompt, summed over the tokens of its answer: KL(teacher || model), equal likeliest tokens, tokens.

    ``[N, 3]``.  Behind a text that is shorter than others of its pass stand tokens that it does not see.
    """
    rows = np.zeros((len(prompts), 3))
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]) + len(said[at]))
    device = teacher.head_weight.device
    for first in range(0, len(order), batch):
        here = order[first : first + batch]
        texts = [[*prompts[at], *said[at]] for at in here]
        longest = max(map(len, texts))
        tokens = torch.tensor([text + [0] * (longest - len(text)) for text in texts], device=device)
        read = tokens[:, :-1]
        states = hidden_states(model, read, storage), hidden_states(teacher, read, None)
        places = [(row, t) for row, at in enumerate(here) for t in range(len(prompts[at]) - 1, len(texts[row]) - 1)]
        row, t = torch.tensor(places, device=device).T
        ours, theirs = (state[row, t] for state in states)
        parts = [
            divergence(model.logits(a), teacher.logits(b))
            for a, b in zip(ours.split(LOGIT_ROWS), theirs.split(LOGIT_ROWS), strict=True)
        ]
        values = torch.cat(parts).double().cpu().numpy()
        np.add.at(rows, np.array(here)[row.cpu().numpy()], np.column_stack([values, np.ones(len(values))]))
    return rows


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student), and whether both have the same likeliest token, of rows of logits ``[N, V]``: [N, 2]."""
    log_q, log_p = (one.to(torch.promote_types(one.dtype, torch.float32)).log_softmax(-1) for one in (student, teacher))
    same = student.argmax(-1) == teacher.argmax(-1)
    return torch.stack([(log_p.exp() * (log_p - log_q)).sum(-1), same.to(log_p.dtype)], dim=-1)


def share(right: np.ndarray[tuple[int], Any]) -> tuple[float, list[float]]:
    """The share of what is true, with Wilson's interval."""
    count, mean, z2 = len(right), float(right.mean()), NORMAL**2
    middle = (mean + z2 / (2 * count)) / (1 + z2 / count)
    half = NORMAL / (1 + z2 / count) * math.sqrt(mean * (1 - mean) / count + z2 / (4 * count**2))
    return round(mean, 4), [round(middle - half, 4), round(middle + half, 4)]


def per_token(
    sums: np.ndarray[tuple[int], Any], tokens: np.ndarray[tuple[int], Any]
) -> tuple[float, list[float] | None]:
    """The mean over all tokens of sums over those of a prompt, with an interval whose units are prompts."""
    mean, count = float(sums.sum() / tokens.sum()), len(sums)
    if count == 1:
        return round(mean, 5), None
    apart = sums - mean * tokens
    error = math.sqrt(count / (count - 1) * float((apart**2).sum())) / float(tokens.sum())
    return round(mean, 5), [round(mean - NORMAL * error, 5), round(mean + NORMAL * error, 5)]


def judged(
    right: np.ndarray[tuple[int], Any], teacher: np.ndarray[tuple[int], Any], tasks: list[str]
) -> dict[str, Any]:
    """Shares of right answers in each task and in all, and points more than the teacher's."""
    found: dict[str, Any] = {name: {} for name in ("right", "right_95", "points", "points_95")}
    for task in (*dict.fromkeys(tasks), "all"):
        here = np.array([task in (one, "all") for one in tasks])
        found["right"][task], found["right_95"][task] = share(right[here])
        more = 100 * (right[here].astype(float) - teacher[here])
        error = NORMAL * float(more.std(ddof=1)) / math.sqrt(len(more)) if len(more) > 1 else math.inf
        found["points"][task] = round(float(more.mean()), 2)
        found["points_95"][task] = [round(float(more.mean()) + side * error, 2) for side in (-1, 1)]
    return found


def apart(sums: np.ndarray[tuple[int, int], Any], tasks: list[str]) -> dict[str, Any]:
    """KL and agreement of each kind of prompt, their mean over kinds, and the worst kind."""
    found: dict[str, Any] = {}
    for column, (name, worst) in enumerate((("kl", max), ("top1", min))):
        values, intervals = {}, {}
        for task in dict.fromkeys(tasks):
            here = np.array([one == task for one in tasks])
            values[task], intervals[task] = per_token(sums[here, column], sums[here, 2])
        found[name] = {
            **values,
            "mean": round(float(np.mean(list(values.values()))), 5),
            "worst": worst(values.values()),
        }
        found[f"{name}_95"] = intervals
    return found


def contenders(asked: argparse.Namespace, teacher: TextModel) -> Iterator[tuple[str, str, LanguageModel, str]]:
    """Name, source, model and cache of everything that is measured; the teacher as it is comes first."""
    for name, source in (("teacher", asked.teacher), *(one.split("=", 1) for one in asked.model)):
        opened = teacher if name == "teacher" else open_text_model(source, opening(asked))
        if opened.tokenizer.identity != teacher.tokenizer.identity:
            raise SystemExit(f"answers: {source} has another tokenizer than the teacher")
        caches = asked.cache or ["full"]
        for cache in dict.fromkeys(("full", *caches) if name == "teacher" else caches):
            yield name, source, opened.model, cache


def opening(asked: argparse.Namespace) -> Opening:
    """How every model is opened."""
    return Opening(device=asked.device, dtype=asked.dtype, cache="full")


def encoded(model: TextModel, template: ChatTemplate, prompts: Sequence[Prompt]) -> list[list[int]]:
    """The tokens of prompts, up to where the answer begins."""
    return [model.encode(template.render(prompt.messages), add_bos=False) for prompt in prompts]


def main(arguments: list[str] | None = None) -> None:
    """Measure every model with every cache."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("teacher")
    parser.add_argument("text", type=Path, nargs="*")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=SOURCE")
    parser.add_argument("--cache", action="append", help="full, int8, int4, own (what each attention says)")
    parser.add_argument("--prompts", type=int, default=300, help="that a rule judges")
    parser.add_argument("--open", type=int, default=32, help="about topics, and about each text")
    parser.add_argument("--tokens", type=int, default=128, help="of an answer to an open prompt")
    parser.add_argument("--judged-tokens", type=int, default=40, help="of an answer that a rule judges")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--show", action="store_true", help="say every judged answer on stderr")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args(arguments)
    if bad := [one for one in asked.model if "=" not in one or one.startswith("teacher=")]:
        parser.error(f"--model {bad[0]}: expected NAME=SOURCE, with another name than teacher")
    teacher = open_text_model(asked.teacher, opening(asked))
    template = chat_template_of(teacher.name, teacher.companions)
    texts = {path.stem: path.read_text(encoding="utf-8") for path in asked.text}
    rules, free = judged_prompts(asked.prompts, asked.seed), open_prompts(asked.open, texts, asked.seed)
    tasks = [prompt.task for prompt in (*rules, *free)]
    prompts, stops = encoded(teacher, template, (*rules, *free)), teacher.tokenizer.stops
    facts = {
        "date": str(datetime.datetime.now(datetime.UTC).date()),
        "commit": commit(),
        "device": torch.cuda.get_device_name() if asked.device.startswith("cuda") else asked.device,
        "torch": torch.__version__,
        "command": " ".join(["python bench/answers.py", *(sys.argv[1:] if arguments is None else arguments)]),
    }
    said: list[list[int]] = []
    right_of_teacher = np.zeros(len(rules), dtype=bool)
    for name, source, model, cache in contenders(asked, teacher):
        storage = stored(cache)

        def answered(most: int, what: Sequence[Sequence[int]]) -> list[list[int]]:
            return answers(model, what, most, stops, storage, asked.batch_size)  # noqa: B023 - called here alone

        given = answered(asked.judged_tokens, prompts[: len(rules)])
        right = np.array([judge(teacher, prompt, ids, asked.show) for prompt, ids in zip(rules, given, strict=True)])
        if not said:
            right_of_teacher, said = right, [*given, *answered(asked.tokens, prompts[len(rules) :])]
        sums = compared(model, teacher.model, prompts, said, storage, asked.batch_size)
        record: dict[str, Any] = {"kind": "answers", "name": name, "source": source, "cache": cache}
        record["cache_bytes"] = round(cached(model, cache, 1024), 1)
        if rules:
            record |= judged(right, right_of_teacher, [prompt.task for prompt in rules])
        record |= apart(sums, tasks)
        counts = {"prompts": len(rules), "open": len(free), "answer_tokens": int(sums[:, 2].sum()), "seed": asked.seed}
        print(json.dumps({**record, **counts, "dtype": asked.dtype, **facts}), flush=True)


def judge(model: TextModel, prompt: Prompt, ids: Sequence[int], show: bool) -> bool:
    """Whether an answer is right."""
    text = model.tokenizer.decode([one for one in ids if one not in model.tokenizer.stops])
    right = prompt.right(text)
    if show:
        print(
            json.dumps({"task": prompt.task, "asked": prompt.messages[-1]["content"], "answer": text, "right": right}),
            file=sys.stderr,
        )
    return right


if __name__ == "__main__":
    main()
