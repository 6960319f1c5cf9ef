"""``caramba generate``: what is continued, in which order, and what is said of prompts that cannot be."""

from __future__ import annotations

import importlib
import io
import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from caramba_plugins_decode.generating import Wanted, continue_file
from caramba_plugins_decode.prompts import Prompt, read_prompts
from caramba_plugins_decode.source import Opening, TextModel, open_text_model
from caramba_plugins_standard.generation import generate

from .conftest import Ran, write_checkpoint

Caramba = Callable[..., Ran]
PROMPTS = ["The sea", "it's naïve café 日", "x", "In 1984 there were 12,345 cats", "The sea"]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def written(path: Path, prompts: list[Any]) -> Path:
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    return path


def expected_of(model: TextModel, prompt: str, count: int) -> str:
    """The continuation of a whole greedy pass, up to its end."""
    ids = model.tokenizer.encode(prompt)
    out = generate(model.model, torch.tensor([ids]), count, stops=model.tokenizer.stops)[0].tolist()
    new = [id_ for id_ in out[len(ids) :] if id_ not in model.tokenizer.stops]
    return model.tokenizer.decode(ids + new)[len(prompt) :]


def test_a_prompt_is_streamed(caramba: Caramba, checkpoint: Path, opened: TextModel) -> None:
    arguments = ("generate", checkpoint, "The sea", "--max-new-tokens", 30, "--device", "cpu", "--dtype", "float64")
    code, out, err = caramba(*arguments)
    assert (code, out) == (0, expected_of(opened, "The sea", 30) + "\n")
    assert "30 tokens at" in err and "greedy (--temperature T samples)" in err and "cache " in err
    code, out, _ = caramba(*arguments, "--json")
    (said,) = lines(out)
    assert said["text"] == expected_of(opened, "The sea", 30)
    assert (said["new_tokens"], said["finish"], said["greedy"]) == (30, "length", True)
    assert said["cache_bytes"] > 0 and said["tokens_per_second"] > 0
    sampled = [caramba(*arguments, "--temperature", 2, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_the_prompt_from_stdin(
    caramba: Caramba, checkpoint: Path, opened: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("The sea\n"))
    arguments = ("--max-new-tokens", 8, "--device", "cpu", "--dtype", "float64")
    assert caramba("generate", checkpoint, "-", *arguments)[1] == expected_of(opened, "The sea", 8) + "\n"


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_file(caramba: Caramba, checkpoint: Path, opened: TextModel, tmp_path: Path, batch_size: int) -> None:
    prompts: list[Any] = [*PROMPTS, "", {"prompt": "The land", "id": "b", "max_new_tokens": 3}, "the " * 400, 3, "end"]
    file = written(tmp_path / "p.jsonl", prompts)
    with file.open("a") as more:
        more.write('\n{"prompt": \n"last"')
    arguments = ("--device", "cpu", "--dtype", "float64", "--max-new-tokens", 12, "--batch-size", batch_size)
    code, out, err = caramba("generate", checkpoint, "--file", file, *arguments)
    found = lines(out)
    assert code == 2 and "12 prompts, 4 failed" in err
    assert [one["line"] for one in found] == [*range(1, 11), 12, 13]
    errors = {one["line"]: one["error"] for one in found if "error" in one}
    assert errors[6] == "the prompt is empty"
    assert "tokens, and the model a context of 256" in errors[8]
    assert "neither a string nor an object" in errors[9] and "not JSON" in errors[12]
    assert found[6]["id"] == "b"
    for at, prompt, count in [*((at, prompt, 12) for at, prompt in enumerate(PROMPTS)), (6, "The land", 3)]:
        assert found[at]["text"] == expected_of(opened, prompt, count)
    assert found[11]["text"] == expected_of(opened, "last", 12)


def test_draws_do_not_depend_on_the_batch(caramba: Caramba, checkpoint: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "p.jsonl", PROMPTS)
    settings = ("--temperature", 1.3, "--top-p", 0.9, "--repetition-penalty", 1.2, "--seed", 5, "--dtype", "float64")
    texts = [
        [one["text"] for one in lines(caramba("generate", checkpoint, "--file", file, *settings, *more)[1])]
        for more in ((), ("--batch-size", 1), ("--batch-size", 3))
    ]
    assert texts[0] == texts[1] == texts[2]
    assert texts[0][0] != texts[0][4], "each line has a seed of its own"
    alone = caramba("generate", checkpoint, PROMPTS[3], *settings[:-3], 8, "--dtype", "float64", "--json")[1]
    assert lines(alone)[0]["text"] == texts[0][3]


def test_a_draft_changes_nothing(caramba: Caramba, checkpoint: Path, draft: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "p.jsonl", [*PROMPTS, ""])
    arguments = ("generate", checkpoint, "--file", file, "--dtype", "float64", "--max-new-tokens", 20)
    code, out, err = caramba(*arguments, "--draft", draft)
    assert (code, out) == caramba(*arguments)[:2]
    assert "drafted tokens accepted" in err
    one = ("generate", checkpoint, "The sea", "--dtype", "float64", "--max-new-tokens", 20, "--json", "--draft", draft)
    said = lines(caramba(*one, "--draft-tokens", 3)[1])[0]
    assert said["text"] == lines(out)[0]["text"]
    assert 0 <= said["accepted_tokens"] <= said["drafted_tokens"]


def test_an_answer_ends(caramba: Caramba, checkpoint: Path, opened: TextModel) -> None:
    text = expected_of(opened, "The sea", 40)
    arguments = ("generate", checkpoint, "The sea", "--device", "cpu", "--dtype", "float64", "--json")
    stop = text[10:14]
    said = lines(caramba(*arguments, "--stop", stop, "--stop", "never there")[1])[0]
    assert (said["text"], said["finish"], said["ended_by"]) == (text[: text.index(stop)], "stop", stop)
    said = lines(caramba(*arguments, "--context", 12)[1])[0]
    prompt = len(opened.tokenizer.encode("The sea"))
    assert (said["finish"], said["new_tokens"]) == ("context", 12 - prompt)


def test_the_ends_are_the_checkpoint_s(tmp_path: Path, caramba: Caramba) -> None:
    folder = write_checkpoint(tmp_path / "model")
    model = open_text_model(str(folder), Opening(device="cpu"))
    ids = model.tokenizer.encode("The sea")
    new = generate(model.model, torch.tensor([ids]), 12)[0, len(ids) :].tolist()
    end = next(id_ for at, id_ in enumerate(new) if at > 3 and id_ not in new[:at])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, 0]}))
    arguments = ("generate", folder, "The sea", "--device", "cpu", "--json", "--max-new-tokens", 12)
    said = lines(caramba(*arguments)[1])[0]
    assert (said["finish"], said["new_tokens"]) == ("end", new.index(end) + 1)
    assert said["ended_by"] == model.tokenizer.decode([end])
    said = lines(caramba(*arguments, "--ignore-eos")[1])[0]
    assert (said["finish"], said["new_tokens"]) == ("length", 12)


def test_models_of_runs_and_teachers(caramba: Caramba, trained: Path) -> None:
    arguments = ("The sea", "--json", "--max-new-tokens", 9, "--device", "cpu")
    run = trained / "runs" / "small" / "main" / "finetune"
    opened = open_text_model(str(run), Opening(device="cpu", cache="full"))
    said = lines(caramba("generate", run, *arguments, "--cache", "full")[1])[0]
    assert said["text"] == expected_of(opened, "The sea", 9)
    assert lines(caramba("generate", run, *arguments)[1])[0]["cache_bytes"] < said["cache_bytes"], "the run's is int8"
    teacher = lines(caramba("generate", trained / "teacher", *arguments)[1])[0]
    found = lines(caramba("generate", trained / "manifest.yml", *arguments, "--group", "main")[1])[0]
    assert found["text"] == teacher["text"]
    for wrong, words in (
        ((trained / "manifest.yml",), "have several teachers"),
        ((trained / "manifest.yml", "--group", "mine"), "has no group 'mine' with a teacher"),
        ((trained / "runs",), "is not a run's folder, but holds some"),
        ((trained / "nothing",), "does not exist"),
        ((run, "--step", 1), "holds no checkpoint of step 1"),
        ((run, "--group", "main"), "leave --group out"),
        ((trained / "teacher", "--step", 2), "leave --step out"),
        ((trained / "teacher", "--cache", "int2"), "there is no cache 'int2'"),
    ):
        code, _, err = caramba("generate", wrong[0], "The sea", *wrong[1:])
        assert code == 2 and words in err, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "there is no prompt"),
        (("a", "--file", "b.jsonl"), "there are a prompt and a file of prompts"),
        (("--file", "b.jsonl"), "b.jsonl cannot be read: No such file"),
        (("",), "the prompt is empty"),
        (("the " * 300,), "and the model a context of 256"),
        (("a", "--batch-size", "3"), "a single prompt has none"),
        (("a", "--temperature", "-1"), "--temperature: -1.0 is below 0"),
        (("a", "--temperature", "nan"), "--temperature: nan is not a finite number"),
        (("a", "--top-p", "1.5"), "--top-p: 1.5 is above 1"),
        (("a", "--top-k", "0"), "--top-k: 0 is below 1"),
        (("a", "--stop", ""), "--stop is empty"),
        (("a", "--draft-tokens", "3"), "--draft-tokens is given, and nothing drafts"),
        (("a", "--add-bos"), "the tokenizer has none"),
    ],
)
def test_what_cannot_be(caramba: Caramba, checkpoint: Path, arguments: tuple[str, ...], words: str) -> None:
    code, out, err = caramba("generate", checkpoint, *arguments)
    assert (code, out) == (2, "") and words in err


def test_a_checkpoint_without_a_tokenizer(caramba: Caramba, checkpoint: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    code, _, err = caramba("generate", folder, "The sea")
    assert code == 2 and "has no tokenizer to read a text with" in err and "--tokenizer" in err
    arguments = ("The sea", "--max-new-tokens", 5)
    borrowed = caramba("generate", folder, *arguments, "--tokenizer", checkpoint)
    assert borrowed[:2] == caramba("generate", checkpoint, *arguments)[:2]


def test_prompts_of_one_length_where_others_cannot_be_together(
    caramba: Caramba, tmp_path: Path, opened: TextModel
) -> None:
    """A model whose attention takes no sequences that start at different places."""
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    folder = write_checkpoint(tmp_path / "model", rope_parameters=scaling)
    model = open_text_model(str(folder), Opening(device="cpu", dtype="float64"))
    file = written(tmp_path / "p.jsonl", PROMPTS)
    code, out, err = caramba("generate", folder, "--file", file, "--dtype", "float64", "--max-new-tokens", 6)
    assert code == 0 and "only those of a length go together" in err
    assert [one["text"] for one in lines(out)] == [expected_of(model, prompt, 6) for prompt in PROMPTS]


def test_memory_does_not_grow_with_the_file(opened: TextModel, capfd: pytest.CaptureFixture[str]) -> None:
    """2,000 prompts: what Python holds, and tensors, are as many at the end as after the first hundred."""
    gc = importlib.import_module("gc")
    wanted = Wanted(max_new_tokens=2)
    held: list[tuple[int, int]] = []

    def prompts() -> Any:
        for number in range(1, 2001):
            if number in (200, 1900):
                gc.collect()
                tensors = sum(type(one) is torch.Tensor for one in gc.get_objects())
                held.append((tracemalloc.get_traced_memory()[0], tensors))
            yield Prompt(line=number, text=f"{number} cats. " * (1 + number % 7))

    tracemalloc.start()
    try:
        assert continue_file(opened, None, prompts(), wanted, batch_size=16) == 0
    finally:
        tracemalloc.stop()
    found = lines(capfd.readouterr().out)
    assert [one["line"] for one in found] == list(range(1, 2001))
    (early, tensors), (late, tensors_late) = held
    assert tensors_late <= tensors
    assert late - early < 200_000, f"{late - early:,} bytes more are held"


def test_prompts_are_read_when_they_are_needed(opened: TextModel) -> None:
    asked: list[int] = []

    class Slow(io.BytesIO):
        def readline(self, size: int | None = -1) -> bytes:
            asked.append(self.tell())
            return super().readline(size)

    prompts = read_prompts(Slow(b'"a"\n' * 1000))
    next(prompts)
    assert len(asked) == 1
