"""``caramba chats``: whose answers they are, prompts that a model makes itself, and what is said of bad ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from caramba_plugins_decode.source import Opening, TextModel, open_text_model
from caramba_plugins_standard.datasets import Chats
from caramba_plugins_standard.generation import generate
from caramba_plugins_standard.loading import find_loader
from caramba_plugins_standard.loading.carried import CarriedTokenizer
from caramba_plugins_standard.marks import GIVEN, IDS, MarkedTokens
from caramba_plugins_standard.modes import Sampling

from .conftest import Ran, write_checkpoint

Caramba = Callable[..., Ran]
FIXED = ("--device", "cpu", "--dtype", "float64")
LINES: list[Any] = [
    {"prompt": "The sea?", "id": 3},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x"}]},
    {"prompt": "In 1984 there were 12,345 cats"},
    {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "the sea"},
            {"role": "user", "content": "And then?"},
        ]
    },
    {"prompt": "x"},
]


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to which all tokens are about equally likely, those that end a turn, too."""
    return write_checkpoint(tmp_path_factory.mktemp("talker"), scale=0.02)


def written(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def chats_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _answer(model: TextModel, said: str, most: int, seed: int) -> tuple[str, str]:
    """The answer to a text that the template wrote, sampled alone, and why it ended."""
    ids, stops = model.tokenizer.encode(said, special_tokens=True), model.tokenizer.stops
    sampling = Sampling(temperature=1.0)
    new = generate(model.model, torch.tensor([ids]), most, stops=stops, sampling=sampling, seed=seed)[0, len(ids) :]
    ended = int(new[-1]) in stops
    return model.tokenizer.decode(new.tolist()[:-1] if ended else new.tolist()), "end" if ended else "length"


def text_of(messages: list[dict[str, str]]) -> str:
    turns = [f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_answers_to_a_file(caramba: Caramba, talker: Path, tmp_path: Path, batch_size: int) -> None:
    file, out = written(tmp_path / "p.jsonl", LINES), tmp_path / "c.jsonl"
    words = ("--file", file, "-o", out, "--max-new-tokens", 40, "--batch-size", batch_size, *FIXED)
    code, printed, err = caramba("chats", talker, "--system", "Be brief.", "--seed", 5, *words)
    assert code == 0 and not printed and "wrote" in err and "5 chats" in err
    found, model = chats_in(out), open_text_model(str(talker), Opening(device="cpu", dtype="float64"))
    told = {"role": "system", "content": "Be brief."}
    given = [
        [told, {"role": "user", "content": line["prompt"]}] if "prompt" in line else line["messages"] for line in LINES
    ]
    given[1] = given[1][:1]  # whose answer is made anew
    for number, (chat, messages) in enumerate(zip(found, given, strict=True)):
        text, finish = _answer(model, text_of(messages), 40, (1 << 40) + 5 + number)
        assert chat == {"messages": [*messages, {"role": "assistant", "content": text}], "finish": finish}


def test_prompts_of_its_own(caramba: Caramba, talker: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "c.jsonl", tmp_path / "again.jsonl"
    words = ("--count", 3, "--max-new-tokens", 10, "--max-prompt-tokens", 60, "--seed", 2, *FIXED)
    code, _, err = caramba("chats", talker, "-o", out, *words, "--batch-size", 64)
    assert code == 0 and "3 chats" in err and "prompts did not end" in err
    assert caramba("chats", talker, "-o", again, *words, "--batch-size", 10)[0] == 0
    assert out.read_text() == again.read_text()

    model, found = open_text_model(str(talker), Opening(device="cpu", dtype="float64")), chats_in(out)
    opening, prompts = "<|im_start|>user\n", list[str]()
    for seed in count(2):
        text, finish = _answer(model, opening, 60, seed)
        prompts += [text.strip()] if finish == "end" and text.strip() else []
        if len(prompts) == 3:
            break
    assert [chat["messages"][0] for chat in found] == [{"role": "user", "content": text} for text in prompts]
    for number, chat in enumerate(found):
        assert (
            chat["messages"][1]["content"]
            == _answer(model, text_of(chat["messages"][:1]), 10, (1 << 40) + 2 + number)[0]
        )


def test_what_is_written_is_a_data_set(caramba: Caramba, talker: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "p.jsonl", LINES)
    words = ("--count", 2, "--max-new-tokens", 12, "--temperature", 0, *FIXED)
    code, _, err = caramba("chats", talker, "--file", file, "-o", tmp_path / "c.jsonl", *words)
    assert code == 0 and "2 chats" in err and "greedy" in err
    checkpoint = find_loader(talker)
    tokenizer = checkpoint.tokenizer()
    assert tokenizer is not None
    tokens = Chats(path="c.jsonl").open(tmp_path, CarriedTokenizer(tokenizer, "talker", checkpoint.companions))
    assert isinstance(tokens, MarkedTokens)
    words_ = tokens.marked(0, len(tokens.ids))
    learned = tokenizer.decode([int(word & IDS) for word in words_ if not word & GIVEN])
    assert learned == "".join(f"{chat['messages'][-1]['content']}<|im_end|>" for chat in chats_in(tmp_path / "c.jsonl"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"text": "x"}, "p.jsonl:2: there is no prompt; its keys: 'text'"),
        ({"prompt": 3}, "there is no prompt"),
        ({"messages": []}, "p.jsonl:2: messages is empty"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "p.jsonl:2: there is nothing to answer"),
        ({"prompt": "the " * 400}, "p.jsonl:2: the prompt has"),
        ("text", "p.jsonl:2: not a JSON object"),
    ],
)
def test_a_bad_line(caramba: Caramba, talker: Path, tmp_path: Path, line: Any, said: str) -> None:
    file = written(tmp_path / "p.jsonl", ["", {"prompt": "The sea"}, line][1:])
    code, out, err = caramba("chats", talker, "--file", file, "-o", tmp_path / "c.jsonl", *FIXED)
    assert code == 2 and said in err and not out and not (tmp_path / "c.jsonl").exists()


def test_what_makes_no_prompts(caramba: Caramba, talker: Path, tmp_path: Path) -> None:
    def refused(*words: object, source: Path = talker) -> str:
        code, _, err = caramba("chats", source, "-o", tmp_path / "c.jsonl", *words, *FIXED)
        assert code == 2 and not (tmp_path / "c.jsonl").exists()
        return " ".join(err.split())

    assert "there are no prompts" in refused()
    assert "greedy prompts would all be the same" in refused("--count", 3, "--temperature", 0)
    (tmp_path / "none.jsonl").write_text("\n")
    assert "holds no prompt" in refused("--file", tmp_path / "none.jsonl")
    few = ("--count", 3, "--max-prompt-tokens", 2, "--batch-size", 1)
    assert "none of 32 ended within 2 tokens" in refused(*few)
    twice = "{% for message in messages %}{{ message.content ~ message.content }}{% endfor %}"
    source = write_checkpoint(tmp_path / "twice", template=twice)
    assert "does not write what a user says once" in refused("--count", 3, source=source)


def test_a_context_that_is_full(caramba: Caramba, checkpoint: Path, opened: TextModel, tmp_path: Path) -> None:
    """Each answer has the room that its own prompt leaves, whichever others are in its batch."""
    file, sizes = written(tmp_path / "p.jsonl", LINES), []
    for line in LINES:
        messages = line.get("messages") or [{"role": "user", "content": line["prompt"]}]
        said = text_of(messages[:-1] if messages[-1]["role"] == "assistant" else messages)
        sizes.append(len(opened.tokenizer.encode(said, special_tokens=True)))
    words = ("--file", file, "-o", tmp_path / "c.jsonl", "--context", max(sizes) + 3, "--temperature", 0, *FIXED)
    code, _, err = caramba("chats", checkpoint, *words)
    assert code == 0 and "5 answers cut" in err
    assert {chat["finish"] for chat in chats_in(tmp_path / "c.jsonl")} == {"context"}
    assert f"answers of {sum(max(sizes) + 3 - size for size in sizes)} tokens" in err
