"""SmolLM2-135M-Instruct itself: ``caramba generate`` and ``chat`` say what transformers says."""

from __future__ import annotations

import importlib
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


def test_200_greedy_tokens(caramba: Callable[..., Ran], weights: Path, theirs: Any, their_tokenizer: Any) -> None:
    ids = their_tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)["input_ids"]
    settings = {"max_new_tokens": 200, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :].tolist()
    assert len(expected) == 200
    arguments = (weights, PROMPT, "--max-new-tokens", 200, "--ignore-eos", "--device", "cpu", "--json")
    code, out, _ = caramba("generate", *arguments)
    said = json.loads(out)
    assert (code, said["new_tokens"]) == (0, 200)
    tokenizer: Tokenizer = their_tokenizer.backend_tokenizer
    assert said["text"] == tokenizer.decode(expected, skip_special_tokens=False)


def test_a_draft_that_is_the_model_changes_nothing(caramba: Callable[..., Ran], weights: Path) -> None:
    arguments = (weights, PROMPT, "--max-new-tokens", 60, "--device", "cpu", "--json")
    alone = json.loads(caramba("generate", *arguments)[1])
    drafted = json.loads(caramba("generate", *arguments, "--draft", weights)[1])
    assert drafted["text"] == alone["text"]
    assert drafted["accepted_tokens"] / drafted["drafted_tokens"] > 0.9


def test_its_chat_template(weights: Path, their_tokenizer: Any) -> None:
    chat = [{"role": "user", "content": "Why is the sea blue?"}, {"role": "assistant", "content": "It is not."}]
    chat.append({"role": "user", "content": " Oh. "})
    model = open_text_model(str(weights), Opening())
    template = chat_template_of(model.name, model.companions)
    expected = their_tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert template.render(chat) == expected
