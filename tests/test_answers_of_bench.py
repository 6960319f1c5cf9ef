"""``bench/answers.py``: prompts and the rules that judge, divergence along a teacher's answers, and a run over a tiny
teacher.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caramba_plugins_decode.source import Opening, TextModel, open_text_model
from caramba_plugins_standard.generation import generate
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from bench import answers, prompts
from tests.run.workspace import make_workspace

TEMPLATE = (
    "{% for message in messages %}{{ message.role[0] + message.content + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a' }}{% endif %}"
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose tokens are bytes, and those that end a turn."""
    folder = make_workspace(tmp_path_factory.mktemp("answers")).parent / "teacher"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={one: at for at, one in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True, normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<end>", "chat_template": TEMPLATE, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text())
    config |= {"vocab_size": 257, "eos_token_id": 256, "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(config))
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = 0.4 * torch.randn(257, 32, generator=torch.Generator().manual_seed(0))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def opened(teacher: Path) -> TextModel:
    return open_text_model(str(teacher), Opening(device="cpu", dtype="float64"))


def test_every_rule_takes_its_own_answer_and_no_other() -> None:
    made = prompts.judged_prompts(160)
    assert made == prompts.judged_prompts(160) and made[:10] == prompts.judged_prompts(10)
    assert [prompt.task for prompt in made[:4]] == ["arithmetic", "copying", "lists", "formats"]
    for prompt in made:
        roles = [message["role"] for message in prompt.messages]
        assert roles == ["user", "assistant"] * prompts.EXAMPLES + ["user"]
        questions = [message["content"] for message in prompt.messages[::2]]
        assert len(set(questions)) == len(questions)
        assert prompt.right(prompt.wanted) and prompt.right(f" {prompt.wanted}\n")
        assert not any(prompt.right(answer) for answer in ("", "I do not know.", "```", "{", "0"))
    assert made != prompts.judged_prompts(160, seed=1)


@pytest.mark.parametrize(
    ("rule", "answer", "wanted", "right"),
    [
        (prompts.number, "7 + 1,005 = 1,012.", "1012", True),
        (prompts.number, "12 apples, not 13", "12", False),
        (prompts.words, '"The sea."', "the sea", True),
        (prompts.words, "The sea is blue", "the sea", False),
        (prompts.letters, "[a b].", "[a b]", True),
        (prompts.letters, "SEA", "sea", False),
        (prompts.items, "1. 16\n2. 17\n3. 18", "16, 17, 18", True),
        (prompts.items, "16, 17, and 18.", "16, 17, 18", True),
        (prompts.items, "16, 18, 17", "16, 17, 18", False),
        (prompts.same_object, 'Here: {"b": 2, "a": 1} is it', '{"a": 1, "b": 2}', True),
        (prompts.same_object, "{'a': 1}", '{"a": 1}', False),
    ],
)
def test_a_rule(rule: prompts.Judge, answer: str, wanted: str, right: bool) -> None:
    assert rule(answer, wanted) is right


def test_prompts_about_anything() -> None:
    text = " ".join(f"word{at}" for at in range(300))
    made = prompts.open_prompts(3, {"prose": text})
    assert [prompt.task for prompt in made] == ["topics"] * 3 + ["prose"] * 3
    passage = made[-1].messages[0]["content"].split("\n\n")[1]
    assert passage in text and len(passage.split()) == prompts.PASSAGE
    with pytest.raises(SystemExit, match="fewer than a passage"):
        prompts.open_prompts(1, {"prose": "a few words"})


def test_batches_change_nothing(opened: TextModel) -> None:
    asked = [opened.encode(text) for text in ("uWhat?<end>a", "uWrite a longer text<end>a", "u<end>a")]
    stops = frozenset(range(0, 257, 9))
    found = answers.answers(opened.model, asked, 12, stops, None, 2)
    for ids, new in zip(asked, found, strict=True):
        alone = generate(opened.model, torch.tensor([ids]), 12, stops=stops)[0, len(ids) :].tolist()
        assert new == alone[: len(new)] and (len(new) == 12 or new[-1] in stops)

    generator = torch.Generator().manual_seed(1)
    student = open_text_model(opened.name, Opening(device="cpu", dtype="float64")).model
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    rows = answers.compared(student, opened.model, asked, found, None, 2)
    for ids, new, row in zip(asked, found, rows, strict=True):
        text = torch.tensor([[*ids, *new]])
        p, q = (model(text)[0, len(ids) - 1 : -1].softmax(-1) for model in (opened.model, student))
        wanted = [(p * (p / q).log()).sum(), (p.argmax(-1) == q.argmax(-1)).sum(), len(new)]
        np.testing.assert_allclose(row, [float(one) for one in wanted], rtol=1e-6)  # divergences are float64, too


def test_intervals() -> None:
    assert answers.share(np.array([True, False])) == (0.5, [0.0945, 0.9055])
    mean, bounds = answers.per_token(np.array([1.0, 3.0, 2.0]), np.array([1.0, 1.0, 2.0]))
    assert mean == 1.5 and bounds is not None and bounds[0] < 1.5 < bounds[1]
    assert answers.per_token(np.array([1.0]), np.array([2.0])) == (0.5, None)
    right, teachers = np.array([True, True, False, True]), np.array([True, False, False, False])
    found = answers.judged(right, teachers, ["lists", "lists", "formats", "formats"])
    assert found["right"] == {"lists": 1.0, "formats": 0.5, "all": 0.75}
    assert found["points"] == {"lists": 50.0, "formats": 50.0, "all": 50.0}


def test_models_beside_their_teacher(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prose.txt").write_text("It was the sea. " * 60)
    sizes = ["--prompts", "8", "--open", "2", "--tokens", "6", "--judged-tokens", "3", "--batch-size", "4"]
    words = [str(teacher), str(tmp_path / "prose.txt"), "--model", f"same={teacher}", "--device", "cpu", *sizes]
    answers.main([*words, "--cache", "full", "--cache", "int4"])
    found: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = [(one["name"], one["cache"]) for one in found]
    assert names == [("teacher", "full"), ("teacher", "int4"), ("same", "full"), ("same", "int4")]
    assert set(found[0]["kl"]) == {"arithmetic", "copying", "lists", "formats", "topics", "prose", "mean", "worst"}
    for one in found:
        exact = one["cache"] == "full"
        assert (one["kl"]["worst"] < 1e-9) is exact and (one["top1"]["worst"] == 1.0 or not exact)
        assert one["prompts"] == 8 and one["open"] == 4 and one["answer_tokens"] <= 8 * 3 + 4 * 6
        assert one["points"]["all"] == 0.0 or not exact
    assert found[1]["cache_bytes"] < found[0]["cache_bytes"]
    for key in ("kl", "right"):
        assert found[2][key] == found[0][key] and found[3][key] == found[1][key]
    with pytest.raises(SystemExit):
        answers.main([*words, "--model", "teacher=elsewhere"])
