"""Small checkpoints that can talk: random models with trained tokenizers, as transformers writes them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from caramba_plugins_decode.source import Opening, TextModel, open_text_model
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from caramba_core.cli import main

TEXT = (
    "In 1984 there were 12,345 cats; it's naïve café 日本語 🎉 🧑‍🚀\n\n  def f(x):\n\treturn x — we'll see, they'd say."
    " The thing that the other thing then thought. Was it the sea, or the land? It was the sea.\r\n"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}"
    "}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Ran = tuple[int, str, str]


def byte_level() -> Tokenizer:
    """BPE over bytes, as GPT-2 and most that came after."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def sentence_piece() -> Tokenizer:
    """BPE with bytes for unknown characters, a space before every text, which is dropped in decoding."""
    words = ["▁the", "▁sea", "▁", "t", "h", "e", "s", "a", ".", "é", "日"]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    vocabulary |= {word: len(vocabulary) + at for at, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def write_checkpoint(
    folder: Path, *, template: str | None = CHATML, seed: int = 0, scale: float = 0.2, **config: Any
) -> Path:
    """A random Llama with a byte-level tokenizer in a Hugging Face folder; it never says a special token."""
    transformers = importlib.import_module("transformers")
    tokenizer = byte_level()
    sizes: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": scale,
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
    }
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(sizes | config)))
    with torch.no_grad():
        model.lm_head.weight[[tokenizer.token_to_id(token) for token in SPECIAL]] = 0.0
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | ({} if template is None else {"chat_template": template}))
    )
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller model with the same tokenizer."""
    return write_checkpoint(tmp_path_factory.mktemp("draft"), seed=7, num_hidden_layers=1)


@pytest.fixture(scope="session")
def opened(checkpoint: Path) -> TextModel:
    return open_text_model(str(checkpoint), Opening(device="cpu", dtype="float64"))


@pytest.fixture
def caramba(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """The command: its exit code, and what it wrote to stdout and stderr."""

    def run(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = capfd.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


MANIFEST = """\
version: 1
name: small
model: {from: teacher}
groups:
  - name: main
    teacher: {source: teacher}
    data: {train: tokens.npy, heldout: tokens.npy}
    eval: {context: 16, windows: 2, cache: int8}
    runs:
      - {id: finetune, mode: train, steps: 2, train: {strategy: pretrain, lr: 1.0e-3, context: 16, device: cpu}}
  - {name: other, extends: main, teacher: {source: elsewhere}}
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest, its teacher, and the run of its first group under ``runs``."""
    numpy = importlib.import_module("numpy")
    folder = tmp_path_factory.mktemp("trained")
    write_checkpoint(folder / "teacher")
    write_checkpoint(folder / "elsewhere", seed=5)
    numpy.save(folder / "tokens.npy", (numpy.arange(400) % 97).astype(numpy.uint16))
    (folder / "manifest.yml").write_text(MANIFEST)
    with pytest.raises(SystemExit) as ended:
        main(["run", str(folder / "manifest.yml"), "--group", "main", "--output", str(folder / "runs")])
    assert not ended.value.code
    return folder
