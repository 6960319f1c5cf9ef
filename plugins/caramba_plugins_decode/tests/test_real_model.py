"""SmolLM2-135M-Instruct itself: ``caramba generate`` and ``chat`` say what transformers says."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from caramba_plugins_decode.source import Opening, open_text_model
from caramba_plugins_standard.chat_template import chat_template_of
from tokenizers import Tokenizer

from caramba_core.cli import main

from .conftest import Ran

pytestmark = [pytest.mark.real_model, pytest.mark.slow]

PROMPT = "It is a truth universally acknowledged, that a single man in possession of a good fortune"


@pytest.fixture(scope="module")
def weights() -> Path:
    root = Path(__file__).parents[3]
    found = root / os.environ.get("CARAMBA_WEIGHTS", ".demo") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not found.is_file():
        pytest.skip(f"{found} is not there; make weights fetches it")
    return found


@pytest.fixture(scope="module")
def theirs(weights: Path) -> Any:
    """The file as transformers reads it."""
    transformers = importlib.import_module("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name)
    return model.to(torch.float32).eval()


@pytest.fixture(scope="module")
def their_tokenizer(weights: Path) -> Any:
    return importlib.import_module("transformers").AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)


def greedy(weights: Path, count: int) -> tuple[object, ...]:
    return ("generate", weights, PROMPT, "--max-new-tokens", count, "--ignore-eos", "--device", "cpu", "--json")


@pytest.fixture(scope="module")
def said(weights: Path) -> dict[str, Any]:
    """200 greedy tokens of ``caramba generate``."""
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in greedy(weights, 200)])
    assert not ended.value.code
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def test_200_greedy_tokens(said: dict[str, Any], theirs: Any, their_tokenizer: Any) -> None:
    """After each prefix of our continuation transformers chooses our next token, so its own continuation is ours."""
    assert said["new_tokens"] == 200
    tokenizer: Tokenizer = their_tokenizer.backend_tokenizer
    prompt, ours = (tokenizer.encode(text, add_special_tokens=False).ids for text in (PROMPT, said["text"]))
    with torch.no_grad():
        chosen = theirs(torch.tensor([prompt + ours[:-1]])).logits[0, len(prompt) - 1 :].argmax(dim=-1)
    assert said["text"] == tokenizer.decode(chosen.tolist(), skip_special_tokens=False)
    assert chosen.tolist() == ours
    assert len(ours) == 200


def test_a_draft_that_is_the_model_changes_nothing(
    caramba: Callable[..., Ran], weights: Path, said: dict[str, Any]
) -> None:
    drafted = json.loads(caramba(*greedy(weights, 60), "--draft", weights)[1])
    assert drafted["new_tokens"] == 60
    assert said["text"].startswith(drafted["text"])
    assert drafted["accepted_tokens"] / drafted["drafted_tokens"] > 0.9


def test_its_chat_template(weights: Path, their_tokenizer: Any) -> None:
    chat = [{"role": "user", "content": "Why is the sea blue?"}, {"role": "assistant", "content": "It is not."}]
    chat.append({"role": "user", "content": " Oh. "})
    model = open_text_model(str(weights), Opening())
    template = chat_template_of(model.name, model.companions)
    expected = their_tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert template.render(chat) == expected
