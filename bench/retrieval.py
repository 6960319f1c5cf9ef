"""Passkey retrieval and chat divergence of finished runs beside their teacher, as JSON lines.

    python bench/retrieval.py MANIFEST DATA --group G [--run R] [--prompts N] [--lengths 512,1024,...] [--output DIR]

A number of five digits stands at a random place in filler text; the model has it right if its greedy continuation of
the question is the number.  Teacher and student read the same prompts.  Lengths at which the teacher finds fewer than
half of the numbers say nothing of the student and are skipped.  The chat prompts are the teacher's own template around
short questions; the divergence is KL(teacher || student) of every next token.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from caramba_plugins_eval.retrieval import Haystacks
from recipe import naming_data
from torch import Tensor

from caramba_core.manifest.load import load_manifest
from caramba_core.nn.language_model import LanguageModel
from caramba_core.run.experiment import Experiment
from caramba_core.teachers import Tokenizer

CHAT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
ASKED = (
    "What is {}?",
    "Explain {} to a child.",
    "Write a short poem about {}.",
    "Give me three facts about {}.",
    "Why does {} matter?",
    "Tell me how {} has changed over the last hundred years.",
    "Summarize the most common mistakes that people make about {}.",
    "Write a polite letter to a friend who knows nothing about {}.",
)
TOPICS = ("gravity", "bread", "the French Revolution", "football", "vaccines", "rivers", "money", "music")


def say(**record: Any) -> None:
    """One JSON line."""
    print(json.dumps(record), flush=True)


def batch_of(prompts: Haystacks, length: int, first: int, count: int) -> tuple[Tensor, int]:
    """Prompts with their answers, int64 ``[count, length]``, and the tokens of the answer at the end of each row."""
    made = [prompts.prompt("passkey", length, index) for index in range(first, first + count)]
    answers = {len(answer) for _, answer in made}
    assert len(answers) == 1, "keys must have one length in tokens"
    return torch.tensor([[*prompt, *answer] for prompt, answer in made]), answers.pop()


def found(model: LanguageModel, tokens: Tensor, answer: int) -> Tensor:
    """Whether the greedy continuation is the answer, bool ``[B]``: every one of its tokens is the likeliest."""
    hidden = model.hidden(tokens)[:, -answer - 1 : -1]
    return (model.logits(hidden).argmax(-1) == tokens[:, -answer:]).all(-1)


def passkey(
    models: dict[str, LanguageModel], prompts: Haystacks, length: int, count: int, tokens_a_pass: int
) -> dict[str, Any]:
    """Share of numbers found by each model; the difference with its paired standard error."""
    device = models["teacher"].head_weight.device
    size = max(1, tokens_a_pass // length)
    parts: dict[str, list[Tensor]] = {}
    for name, model in models.items():
        for first in range(0, count, size):
            tokens, answer = batch_of(prompts, length, first, min(size, count - first))
            parts.setdefault(name, []).append(found(model, tokens.to(device), answer).cpu())
        if name == "teacher" and torch.cat(parts[name]).float().mean() < 0.5:
            return {"prompts": count, "teacher": float(torch.cat(parts[name]).float().mean()), "skipped": True}
    hits = {name: torch.cat(rows).double() for name, rows in parts.items()}
    result: dict[str, Any] = {"prompts": count, **{name: round(float(rows.mean()), 4) for name, rows in hits.items()}}
    difference = hits["student"] - hits["teacher"]
    return {
        **result,
        "difference": round(float(difference.mean()), 4),
        "standard_error": round(float(difference.std()) / math.sqrt(count), 4),
    }


def chat_divergence(teacher: LanguageModel, student: LanguageModel, tokenizer: Tokenizer) -> dict[str, Any]:
    """Mean KL in nats over all tokens of the chat prompts, and of the reply's first token."""
    all_tokens, last = [], []
    prompts = [CHAT.format(asked.format(topic)) for asked in ASKED for topic in TOPICS]
    for prompt in prompts:
        tokens = torch.tensor([tokenizer.encode(prompt)], device=teacher.head_weight.device)
        p, q = (model(tokens)[0].float().log_softmax(-1) for model in (teacher, student))
        kl = (p.exp() * (p - q)).sum(-1)
        all_tokens.append(kl[1:])
        last.append(kl[-1:])
    each = torch.cat(last)
    return {
        "prompts": len(prompts),
        "kl": round(float(torch.cat(all_tokens).mean()), 5),
        "kl_first_reply_token": round(float(each.mean()), 5),
        "standard_error": round(float(each.std()) / math.sqrt(len(each)), 5),
    }


@torch.inference_mode()
def main() -> None:
    """Measure the runs of one group."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("manifest")
    parser.add_argument("data", type=Path)
    parser.add_argument("--group", required=True)
    parser.add_argument("--run", action="append", help="all finished runs if not given")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--lengths", default="512,1024,2048,4096")
    parser.add_argument("--tokens-a-pass", type=int, default=65536)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--output", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    manifest, output = str(Path(arguments.manifest).resolve()), arguments.output.resolve()
    overrides = naming_data(manifest, arguments.data.resolve(), arguments.overrides)
    loaded = load_manifest(manifest, overrides=overrides, fetch=True)
    experiment = Experiment(loaded, group=arguments.group, output=output)
    group = experiment.groups[0]
    for run in group.runs:
        if arguments.run and run.id not in arguments.run:
            continue
        context = experiment.finished_context(group, run)
        if context is None:
            say(event="not finished", run=run.id)
            continue
        tokenizer = context.shared.tokenizer
        assert tokenizer is not None, "the teacher carries no tokenizer"
        models = {"teacher": context.teacher, "student": context.student.eval()}
        device = context.teacher.head_weight.device.type
        with torch.autocast(device, torch.bfloat16, enabled=arguments.dtype == "bfloat16"):
            say(event="chat", group=arguments.group, run=run.id, **chat_divergence(*models.values(), tokenizer))
            for length in map(int, arguments.lengths.split(",")):
                began = time.monotonic()
                result = passkey(
                    models, Haystacks(tokenizer, seed=0), length, arguments.prompts, arguments.tokens_a_pass
                )
                seconds = round(time.monotonic() - began, 1)
                say(event="passkey", group=arguments.group, run=run.id, length=length, **result, seconds=seconds)


if __name__ == "__main__":
    main()
