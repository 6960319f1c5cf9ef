"""Figures against plain references: sums written out over the logits of single passes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caramba_plugins_eval.likelihoods import rolling_windows
from caramba_plugins_eval.retrieval import Haystacks
from caramba_plugins_standard.generation import generate
from caramba_plugins_standard.opening import load_checkpoint, open_checkpoint, open_run
from torch import Tensor

from caramba_core.teachers import Tokenizer

RUN = "runs/small/half/convert"
Caramba = Callable[..., tuple[int, str, str]]


@cache
def reference(folder: Path) -> tuple[Any, Any, Tokenizer, list[int]]:
    """Student, teacher, tokenizer, and the ids of the held-out text."""
    checkpoint = open_checkpoint(str(folder / "teacher"))
    tokenizer = checkpoint.tokenizer()
    assert tokenizer is not None
    ids = tokenizer.encode((folder / "heldout.txt").read_text())
    return open_run(folder / RUN, None).model("cpu"), load_checkpoint(checkpoint, "cpu", "float32"), tokenizer, ids


@torch.no_grad()
def log_likelihoods(model: Any, ids: list[int]) -> Tensor:
    """Log-probabilities ``[T, V]`` behind each token of one text, in one pass and float64."""
    return model(torch.tensor([ids]))[0].double().log_softmax(-1)


def scored(model: Any, ids: list[int]) -> Tensor:
    """Log-likelihood of each token but the first."""
    rows = log_likelihoods(model, ids)
    return torch.stack([rows[at, ids[at + 1]] for at in range(len(ids) - 1)])


def figures(caramba: Caramba, *arguments: object) -> dict[str, Any]:
    code, out, err = caramba("eval", RUN, *arguments, "--json", "--device", "cpu")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return {name: figure["value"] for name, figure in found["metrics"].items()}


def test_perplexity_at_contexts_is_of_the_same_text(made: Path, caramba: Caramba) -> None:
    student, _, _, ids = reference(made)
    found = figures(caramba, "--metric", "perplexity", "--set", "perplexity.contexts=[16,64]")
    for context in (16, 64):
        windows = [ids[first : first + context] for first in range(0, 128, context)]  # eval: 4 windows of 32
        each = torch.cat([scored(student, window) for window in windows])
        assert found[f"perplexity.{context}"] == pytest.approx(math.exp(-float(each.mean())), rel=1e-5)


def test_perplexity_by_position(made: Path, caramba: Caramba) -> None:
    student, _, _, ids = reference(made)
    arguments = ("--metric", "position", "--set", "position.buckets=3", "--set", "position.context=32")
    found = figures(caramba, *arguments)
    rows = torch.stack([scored(student, ids[first : first + 32]) for first in range(0, 128, 32)])
    for first, last in ((1, 10), (11, 21), (22, 31)):
        expected = math.exp(-float(rows[:, first - 1 : last].mean()))
        assert found[f"position.{first}-{last}"] == pytest.approx(expected, rel=1e-5)


def test_agreement_is_a_sum_over_the_vocabulary(made: Path, caramba: Caramba) -> None:
    student, teacher, _, ids = reference(made)
    found = figures(caramba, "--metric", "agreement", "--batch-size", "3")
    parts = figures(caramba, "--metric", "agreement", "--set", "agreement.buckets=3")
    assert parts | found == parts  # the whole window's are the same
    divergence, same, lost = np.zeros((4, 31)), np.zeros((4, 31)), np.zeros((4, 31))
    for row, first in enumerate(range(0, 128, 32)):
        log_q, log_p = (log_likelihoods(model, ids[first : first + 32])[:-1] for model in (student, teacher))
        for at, (q, p) in enumerate(zip(log_q, log_p, strict=True)):
            divergence[row, at] = sum(math.exp(b) * (b - a) for a, b in zip(q.tolist(), p.tolist(), strict=True))
            same[row, at] = int(q.argmax() == p.argmax())
            lost[row, at] = float((p - q)[ids[first + at + 1]])
    for name, here in (("", slice(None)), (".1-10", slice(10)), (".11-21", slice(10, 21)), (".22-31", slice(21, 31))):
        assert parts[f"agreement.kl{name}"] == pytest.approx(divergence[:, here].mean(), rel=1e-4)
        assert parts[f"agreement.top1{name}"] == pytest.approx(same[:, here].mean())
        assert parts[f"agreement.ratio{name}"] == pytest.approx(math.exp(lost[:, here].mean()), rel=1e-4)


def test_agreement_of_a_model_with_itself(caramba: Caramba) -> None:
    code, out, err = caramba(
        *("eval", "teacher", "--teacher", "teacher", "--metric", "agreement", "--data", "heldout.txt"),
        *("--context", 32, "--json"),
    )
    assert code == 0, err
    found = json.loads(out)["metrics"]
    assert found["agreement.kl"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert found["agreement.top1"]["value"] == 1.0


def test_rolling_scores_every_token_of_a_text_once(made: Path, caramba: Caramba) -> None:
    student, _, tokenizer, ids = reference(made)
    found = figures(caramba, "--metric", "rolling", "--context", "50")
    whole, total = [tokenizer.end_of_text, *ids], 0.0
    assert len(ids) % 50
    for done in range(0, len(ids), 50):  # the tokens from ``done`` on, each from at most 50 before it
        end = min(done + 50, len(ids))
        row = scored(student, whole[end - 50 : end + 1])
        total += float(row[len(row) - (end - done) :].sum())
    text = (made / "heldout.txt").read_text()
    assert found["rolling.token"] == pytest.approx(math.exp(-total / len(ids)), rel=1e-5)
    assert found["rolling.byte"] == pytest.approx(math.exp(-total / len(text.encode())), rel=1e-5)
    assert found["rolling.bits_per_byte"] == pytest.approx(-total / len(text.encode()) / math.log(2), rel=1e-5)


@pytest.mark.parametrize("count", [1, 4, 5, 9, 12])
def test_rolling_windows(count: int) -> None:
    ids = np.arange(10, 10 + count)
    windows, counted = rolling_windows(ids, 1, 4)
    assert windows.shape[1] == min(4, count) + 1
    assert windows[:, 1:][counted].tolist() == ids.tolist()
    assert windows[0, 0] == 1


def test_an_interval_holds_the_figure(caramba: Caramba) -> None:
    arguments = ("--metric", "perplexity", "--metric", "passkey", "--set", "passkey={contexts: [200], prompts: 2}")
    code, out, err = caramba("eval", RUN, *arguments, "--json")
    assert code == 0, err
    for name, figure in json.loads(out)["metrics"].items():
        low, high = figure["interval_95"]
        assert low < figure["value"] < high or (name.startswith("passkey") and low <= figure["value"] <= high)


def test_passkey_prompts_follow_from_the_seed_and_hold_their_answer(made: Path) -> None:
    _, _, tokenizer, _ = reference(made)
    prompts = Haystacks(tokenizer, seed=3)
    for index in range(4):
        prompt, answer = prompts.prompt("passkey", 200, index)
        assert len(prompt) + len(answer) == 200
        assert (prompt, answer) == Haystacks(tokenizer, seed=3).prompt("passkey", 200, index)
        key = tokenizer.decode(answer)
        assert tokenizer.decode(prompt).count(key) == 2
        assert len(key) == 5
    assert prompts.prompt("passkey", 200, 0) != Haystacks(tokenizer, seed=4).prompt("passkey", 200, 0)


def test_passkey_is_what_the_cache_continues(made: Path, caramba: Caramba, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is made what the model says to every other prompt."""
    student = reference(made)[0]
    original = Haystacks.prompt

    def told(haystacks: Haystacks, task: str, length: int, index: int) -> tuple[list[int], list[int]]:
        prompt, answer = original(haystacks, task, length, index)
        said = generate(student, torch.tensor([prompt]), len(answer))[0, len(prompt) :].tolist()
        return prompt, said if index % 2 else answer

    monkeypatch.setattr(Haystacks, "prompt", told)
    found = figures(caramba, "--metric", "passkey", "--set", "passkey.contexts=[200]", "--set", "passkey.prompts=4")
    assert found == {"passkey.200": 0.5}


@pytest.mark.parametrize("task", ["single", "many", "variables", "counting"])
def test_haystacks_follow_from_the_seed_and_hold_what_is_asked(made: Path, task: str) -> None:
    _, _, tokenizer, _ = reference(made)
    haystacks, answers = Haystacks(tokenizer, seed=3), set()
    for index in range(6):
        ids, answer = haystacks.prompt(task, 700, index)
        assert len(ids) + len(answer) == 700
        assert (ids, answer) == Haystacks(tokenizer, seed=3).prompt(task, 700, index)
        text, said = tokenizer.decode(ids), tokenizer.decode(answer)
        answers.add(said)
        body, _, question = text.rpartition("\n\n")
        if task == "counting":
            assert body.count("The bell rang once. ") == int(said)
            continue
        value = dict(re.findall(r"The (?:number|value) of (?:the )?(\w+) is (?:the value of )?(\w+)\. ", body))
        assert len(value) == {"single": 1, "many": 8, "variables": 6}[task]
        name = question.split("?")[0].split()[-1]
        for _ in range(3 if task == "variables" else 1):
            name = value[name]
        assert name == said
    assert len(answers) > 3
    assert haystacks.prompt(task, 700, 0) != Haystacks(tokenizer, seed=4).prompt(task, 700, 0)


def test_retrieval_is_what_the_cache_continues(made: Path, caramba: Caramba, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers are made what the model says to all prompts of one task, and to half of another's."""
    student = reference(made)[0]
    original = Haystacks.prompt

    def told(haystacks: Haystacks, task: str, length: int, index: int) -> tuple[list[int], list[int]]:
        prompt, answer = original(haystacks, task, length, index)
        said = generate(student, torch.tensor([prompt]), len(answer))[0, len(prompt) :].tolist()
        return prompt, said if task == "single" or index % 2 else answer

    monkeypatch.setattr(Haystacks, "prompt", told)
    settings = "retrieval={contexts: [250], prompts: 4, tasks: [single, variables]}"
    found = figures(caramba, "--metric", "retrieval", "--set", settings)
    assert found == {"retrieval.single.250": 1.0, "retrieval.variables.250": 0.5}


def test_retrieval_that_does_not_fit_is_refused(caramba: Caramba) -> None:
    asked = ("eval", RUN, "--metric", "retrieval", "--set", "retrieval.contexts=[100]")
    code, _, err = caramba(*asked, "--set", "retrieval.tasks=[many]")
    assert (code, "retrieval: prompts of many do not fit in 100 tokens" in err) == (2, True)
    code, _, err = caramba(*asked, "--set", "retrieval.tasks=[many,many]")
    assert (code, "are no tasks" in err) == (2, True)


def test_speed_and_memory(made: Path, caramba: Caramba) -> None:
    student, _, _, _ = reference(made)
    found = figures(
        caramba,
        *("--metric", "latency", "--metric", "memory", "--set", "latency={contexts: [16], steps: 2, repeats: 1}"),
        *("--set", "memory.contexts=[16,32]", "--cache", "full"),
    )
    assert found["latency.prefill.16"] > 0
    assert found["latency.decode.16"] > 0
    assert found["memory.weights"] == sum(weight.numel() * 4 for weight in student.parameters())
    assert found["memory.cache.32"] == 2 * found["memory.cache.16"] == student.new_cache(1, capacity=32).bytes


def test_the_cache_that_is_asked_for_is_measured(caramba: Caramba) -> None:
    plain, rounded = (figures(caramba, "--metric", "agreement", "--cache", name) for name in ("full", "int4"))
    assert rounded["agreement.kl"] > plain["agreement.kl"]
