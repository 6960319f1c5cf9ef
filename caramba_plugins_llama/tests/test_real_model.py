"""SmolLM2-135M-Instruct itself: the GGUF that ``make weights`` fetches, against transformers on the same values."""

from __future__ import annotations

import hashlib
import importlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from caramba_plugins_llama.exporting import Original
from caramba_plugins_llama.gguf_file import GgufFile
from caramba_plugins_llama.standard_exporter import StandardExporter
from caramba_plugins_standard.generation import generate
from caramba_plugins_standard.loading import find_loader

from caramba_core.lowering import lower
from caramba_core.manifest.load import load_manifest
from caramba_core.nn.language_model import LanguageModel

from .conftest import graph_of, quiet, read_model

pytestmark = pytest.mark.real_model

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TEXT = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a "
    "wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this "
    "truth is so well fixed in the minds of the surrounding families, that he is considered the rightful property of "
    "some one or other of their daughters. In 1813 the novel was sold in 3 volumes for 18 shillings.\n\n"
)


@pytest.fixture(scope="module")
def path() -> Path:
    root = Path(__file__).parents[2]
    found = root / os.environ.get("CARAMBA_WEIGHTS", ".demo") / NAME
    if not found.is_file():
        pytest.skip(f"{found} is not there; make weights fetches it")
    with found.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SHA256
    return found


@pytest.fixture(scope="module")
def model(path: Path) -> LanguageModel:
    return read_model(path)


@pytest.fixture(scope="module")
def oracle(path: Path, model: LanguageModel) -> Any:
    """transformers' model of the same architecture, given the same values by name."""
    transformers = importlib.import_module("transformers")
    config = transformers.LlamaConfig(**{**GgufFile.open(path).config, "rope_parameters": {"rope_theta": 100000.0}})
    with quiet():
        oracle = transformers.LlamaForCausalLM(config).eval()
        folder = StandardExporter.describe("llama", Original(graph=model.graph))
        state = {folder.key(name): tensor for name, tensor in model.state_dict().items()}
        missing, unexpected = oracle.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    oracle.tie_weights()
    return oracle


@pytest.fixture(scope="module")
def tokens(path: Path) -> torch.Tensor:
    tokenizer = GgufFile.open(path).tokenizer()
    assert tokenizer is not None
    return torch.tensor([tokenizer.encode(TEXT)])


def test_tokens_are_those_of_smollm2(path: Path) -> None:
    tokenizer = GgufFile.open(path).tokenizer()
    assert tokenizer is not None
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (49152, 0)
    assert tokenizer.identity == "0cd1ce3564ff3711f5f63d2c60092a51b4dd79cb65255350a9ee76e3a20a0c69"
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    digits = tokenizer.encode("1984")
    assert [tokenizer.decode([token]) for token in digits] == list("1984")


def test_the_preset_is_the_model_of_the_file(path: Path) -> None:
    preset = load_manifest("smollm2_135m")
    checkpoint = find_loader(path)
    mine, theirs = lower(preset.manifest.model).nodes(), graph_of(checkpoint).nodes()
    assert mine.keys() == theirs.keys()
    for name, node in mine.items():
        assert node.config == theirs[name].config, name


def test_logits(model: LanguageModel, oracle: Any, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        difference = (model(tokens) - oracle(tokens).logits).abs().max()
    assert difference <= 1e-3


def test_logits_far_out(model: LanguageModel, oracle: Any, tokens: torch.Tensor) -> None:
    """Rows that start at position 3,000: rotary angles must be exact there too."""
    from caramba_core.nn.frame import Frame

    part = tokens[:, :64]
    positions = torch.arange(3000, 3064)
    with torch.no_grad():
        expected = oracle(part, position_ids=positions[None]).logits
        found = model(part, Frame(positions=positions))
    assert (found - expected).abs().max() <= 1e-3


def test_greedy_continuation(model: LanguageModel, oracle: Any, tokens: torch.Tensor) -> None:
    """After each prefix of our continuation transformers chooses our next token, so its own continuation is ours.

    ``caramba generate`` is held against transformers over 200 tokens (caramba-plugins-decode).
    """
    ours = generate(model, tokens[:, :40], 50)
    assert ours.shape == (1, 90)
    with torch.no_grad():
        chosen = oracle(ours).logits.argmax(dim=-1)
    assert torch.equal(ours[:, 40:], chosen[:, 39:-1])
