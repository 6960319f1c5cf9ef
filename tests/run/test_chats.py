"""Chats as training data: ids as transformers gives them, loss on answers alone, and what they look like."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caramba_plugins_llama.tokenizer import HuggingFaceTokenizer
from caramba_plugins_standard import datasets
from caramba_plugins_standard.chat_tokens import ChatTokens
from caramba_plugins_standard.datasets import Chats
from caramba_plugins_standard.loading import find_loader
from caramba_plugins_standard.loading.carried import CarriedTokenizer
from caramba_plugins_standard.marks import BEGINS, GIVEN, IDS
from caramba_plugins_standard.training.batch import batches_of
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from caramba_core.cli import main
from caramba_core.errors import InputError, InvalidValue

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}"
    "}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' }}{% endif %}{% endfor %}"
)
CHATS = [
    [
        ("user", "What was the sea?"),
        ("assistant", "It was 日本 — the sea."),
        ("user", "Oh\n"),
        ("assistant", "We'll see"),
    ],
    [("system", "Be brief."), ("user", "Hi"), ("assistant", "\n\n  Hello, the thing!\n")],
    [("user", "nothing is answered here")],
    [("user", "Say <|im_end|>"), ("assistant", "the sea, or the land?")],
]


def written(chats: list[list[tuple[str, str]]]) -> list[list[dict[str, str]]]:
    return [[{"role": role, "content": content} for role, content in chat] for chat in chats]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a byte-level tokenizer, its template beside it."""
    transformers = importlib.import_module("transformers")
    folder = tmp_path_factory.mktemp("chats") / "teacher"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    texts = ["It was the sea, or the land?\n\n The thing that the other thing thought, we'll see."] * 3
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
        bos_token_id=tokenizer.token_to_id("<|im_start|>"),
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>", "chat_template": CHATML}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def carried(teacher: Path) -> CarriedTokenizer:
    checkpoint = find_loader(teacher)
    tokenizer = checkpoint.tokenizer()
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    return CarriedTokenizer(tokenizer, "teacher", checkpoint.companions)


def opened(folder: Path, carried: CarriedTokenizer, chats: Any = None, **settings: Any) -> ChatTokens:
    lines = written(CHATS) if chats is None else chats
    (folder / "c.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in lines))
    tokens = Chats(path="c.jsonl", **settings).open(folder, carried)
    assert isinstance(tokens, ChatTokens)
    return tokens


def split(tokens: ChatTokens) -> list[list[int]]:
    """The chats of a file, each a list of ids with marks."""
    words = tokens.marked(0, len(tokens.ids)).tolist()
    starts = [place for place, word in enumerate(words) if word & BEGINS]
    return [words[first:last] for first, last in zip(starts, [*starts[1:], len(words)], strict=True)]


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["plain", "marked"])
def test_ids_and_answers_are_those_of_transformers(
    teacher: Path, carried: CarriedTokenizer, tmp_path: Path, template: str
) -> None:
    theirs = importlib.import_module("transformers").AutoTokenizer.from_pretrained(teacher)
    (tmp_path / "t.jinja").write_text(template)
    found = split(opened(tmp_path, carried, template="t.jinja"))
    assert len(found) == len(CHATS)
    for words, chat in zip(found, written(CHATS), strict=True):
        expected = theirs.apply_chat_template(
            chat, chat_template=template, return_dict=True, return_assistant_tokens_mask=template == MARKED
        )
        assert [word & IDS for word in words] == expected["input_ids"]
        if template == MARKED:
            assert [int(not word & GIVEN) for word in words] == expected["assistant_masks"]


def test_answers_alone_are_learned(carried: CarriedTokenizer, tmp_path: Path) -> None:
    """With the token that ends a turn, without the line break behind it; a token over an edge is not learned."""
    answers = []
    for words in split(opened(tmp_path, carried)):
        learned = [word & IDS for word in words if not word & GIVEN]
        answers.append(carried.decode(learned) if learned else "")
    assert answers[0] == "It was 日本 — the sea.<|im_end|>We'll see<|im_end|>"
    assert answers[1].lstrip("\n") == "  Hello, the thing!\n<|im_end|>"
    assert answers[2] == ""
    assert answers[3] == "the sea, or the land?<|im_end|>"


def test_chats_are_documents_unless_told_otherwise(carried: CarriedTokenizer, tmp_path: Path) -> None:
    apart, together = opened(tmp_path, carried), opened(tmp_path, carried, documents=False)
    count = len(apart.ids)
    assert ((apart.marked(0, count) & BEGINS) > 0).sum() == len(CHATS)
    assert not (together.marked(0, count) & BEGINS).any()
    assert (apart.marked(0, count) & ~np.int64(BEGINS) == together.marked(0, count)).all()
    assert apart.hash != together.hash
    [batch] = batches_of(torch.from_numpy(apart.marked(0, count))[None, None], marked=True)
    assert batch.begins is not None
    assert int((batch.targets >= 0).sum()) == int((apart.marked(1, count) & GIVEN == 0).sum())
    half = opened(tmp_path, carried, part=(0.5, 1.0))
    assert [len(words) for words in split(half)] == [len(words) for words in split(apart)[2:]]
    with pytest.raises(InputError, match=r"c\.jsonl \[0\.1, 0\.2\] holds no chat"):
        opened(tmp_path, carried, part=(0.1, 0.2))


def test_ids_of_large_files_are_kept(
    carried: CarriedTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = opened(tmp_path, carried)
    monkeypatch.setattr(datasets, "_CACHED_CHARACTERS", 1)
    first = opened(tmp_path, carried)
    monkeypatch.setattr("caramba_plugins_standard.chat_tokens.chat_words", None)
    assert first.hash == opened(tmp_path, carried).hash == plain.hash
    with pytest.raises(TypeError):  # another template is another array
        (tmp_path / "t.jinja").write_text(MARKED)
        opened(tmp_path, carried, template="t.jinja")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[1]", r"c\.jsonl:2: not a JSON object"),
        ('{"text": "x"}', r"c\.jsonl:2: there is no 'messages'; its keys: 'text'"),
        ('{"messages": "x"}', "messages is str"),
        ('{"messages": []}', "messages is empty"),
        ('{"messages": ["x"]}', "message 1 is str"),
        ('{"messages": [{"role": "user"}]}', "content of message 1 is missing"),
        ('{"messages": [{"role": "user", "content": null}]}', "content of message 1 is NoneType, not text"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "half of a surrogate pair"),
    ],
)
def test_lines_that_are_no_chats(carried: CarriedTokenizer, tmp_path: Path, line: str, words: str) -> None:
    good = json.dumps({"messages": written(CHATS)[0]})
    (tmp_path / "c.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(InputError, match=words):
        Chats(path="c.jsonl").open(tmp_path, carried)


def test_what_is_refused(carried: CarriedTokenizer, tmp_path: Path) -> None:
    thinks = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content if loop.last else m.content[2:]) }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    (tmp_path / "t.jinja").write_text(thinks)
    with pytest.raises(InputError, match=r"c\.jsonl:1: .*t\.jinja: message 2 is written differently once"):
        opened(tmp_path, carried, template="t.jinja")
    with pytest.raises(InputError, match="there is nothing to learn"):
        opened(tmp_path, carried, written(CHATS[2:3]))
    with pytest.raises(InputError, match="there is no tokenizer"):
        Chats(path="c.jsonl").open(tmp_path, None)
    with pytest.raises(InputError, match="has no chat template"):
        opened(tmp_path, CarriedTokenizer(carried.tokenizer, "teacher", dict))
    (tmp_path / "t.jinja").write_text("{{ strftime_now('%d %b %Y') }}" + CHATML)
    with pytest.raises(InputError, match="writes today's date"):
        opened(tmp_path, carried, template="t.jinja")
    dated = split(opened(tmp_path, carried, template="t.jinja", date="2024-07-26"))
    assert carried.decode([word & IDS for word in dated[0]]).startswith("26 Jul 2024<|im_start|>user")
    with pytest.raises(InvalidValue, match="date"):
        Chats(path="c.jsonl", date="2024-13-01")
    with pytest.raises(InvalidValue, match="the list is empty"):
        Chats(path=())


MANIFEST = """\
version: 1
name: small
model: {from: teacher}
groups:
  - name: main
    teacher: {source: TEACHER}
    data:
      train:
        type: mixture
        parts: [{weight: 3, data: {type: chats, path: c.jsonl}}, {weight: 1, data: t.npy}]
    runs:
      - id: tune
        mode: train
        steps: 4
        train: {strategy: finetune, device: cpu, lr: 1.0e-2, batch_size: 2, accumulate: 2, context: 24}
"""


def test_a_run_over_chats(
    teacher: Path, carried: CarriedTokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the checkpoint, mixed with an array; ``data show`` prints what it learns."""
    opened(tmp_path, carried)
    np.save(tmp_path / "t.npy", np.arange(100, dtype=np.uint16))
    (tmp_path / "m.yml").write_text(MANIFEST.replace("TEACHER", str(teacher)))

    def caramba(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, " ".join(said.err.split())

    assert caramba("run", str(tmp_path / "m.yml"), "--output", str(tmp_path / "runs"))[0] == 0
    lines = (tmp_path / "runs/small/main/tune/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[0] == pytest.approx(np.log(300), rel=0.1)
    assert losses[-1] < losses[0]
    code, said, _ = caramba("data", "show", str(tmp_path / "m.yml"), "-n", "12")
    assert code == 0
    assert said.count("of main/tune: 25 tokens") == 12
    assert "--- document 2:" in said
    assert " 日本 — the sea.<|im_end|>⟧\n<|im_start|>user\nOh\n" in said
    own = [line for line in said.splitlines() if line.endswith("1 document, 24 learned")]
    assert own, "windows of the array are learned whole, and have no brackets"

    alone = MANIFEST.replace("    teacher: {source: TEACHER}\n", "").replace("{from: teacher}", MODEL)
    (tmp_path / "m.yml").write_text(alone)
    code, _, err = caramba("compile", str(tmp_path / "m.yml"))
    assert code == 2
    assert "this strategy goes on from weights, and the group has no teacher" in err


MODEL = """\
{type: transformer, embedder: {type: token, vocab_size: 303, d_model: 16},
   topology: {type: stacked, layers: [{type: rms_norm}]}}"""
