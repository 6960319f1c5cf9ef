"""A tiny Llama with a tokenizer, its conversion, and runs that measure it, through the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from caramba_plugins_eval.retrieval import FILLER, INTRODUCTION, PASSKEY_QUESTION
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from caramba_core.cli import main

Ran = tuple[int, str, str]
Caramba = Callable[..., Ran]

WIDTH, LAYERS, HEADS, GROUPS, HIDDEN = 32, 2, 4, 2, 48
TEXT = "The sea was calm; the men rowed on, and nobody said a word. At noon, the wind rose from the north.\n"

MANIFEST = """\
version: 1
name: small
model:
  from: teacher
  replace:
    attention: {type: dba, sem_dim: 4, geo_dim: 8, v_dim: 10, o_bias: true}
groups:
  - name: half
    teacher: {source: teacher}
    data: {train: train.txt, heldout: heldout.txt}
    eval: {windows: 4, context: 32}
    runs:
      - {id: convert, mode: convert, device: cpu, start: {tokens: 256, max_context: 32, batch_size: 2}}
      - id: measure
        mode: eval
        device: cpu
        metrics: [agreement, {type: perplexity, contexts: [16, 64]}, {type: passkey, contexts: [200], prompts: 2}]
        verify: {at_least: {agreement.top1: 0.0}, at_most: {perplexity.16: 1.0e+9}}
"""


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def write_teacher(folder: Path) -> None:
    """A random Llama, and a tokenizer of bytes that knows the words of passkey prompts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, show_progress=False, special_tokens=["<|end|>"]
    )
    known = f"{INTRODUCTION}{FILLER}{PASSKEY_QUESTION} The pass key is. Remember it. is the pass key. {TEXT}"
    tokenizer.train_from_iterator([known] * 3, trainer)
    vocabulary = tokenizer.get_vocab_size()
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    head = WIDTH // HEADS
    tensors = {"model.embed_tokens.weight": drawn(vocabulary, WIDTH), "model.norm.weight": torch.ones(WIDTH)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        tensors |= {
            f"{prefix}.input_layernorm.weight": torch.ones(WIDTH),
            f"{prefix}.post_attention_layernorm.weight": torch.ones(WIDTH),
            f"{prefix}.self_attn.q_proj.weight": drawn(WIDTH, WIDTH),
            f"{prefix}.self_attn.k_proj.weight": drawn(GROUPS * head, WIDTH),
            f"{prefix}.self_attn.v_proj.weight": drawn(GROUPS * head, WIDTH),
            f"{prefix}.self_attn.o_proj.weight": drawn(WIDTH, WIDTH),
            f"{prefix}.mlp.gate_proj.weight": drawn(HIDDEN, WIDTH),
            f"{prefix}.mlp.up_proj.weight": drawn(HIDDEN, WIDTH),
            f"{prefix}.mlp.down_proj.weight": drawn(WIDTH, HIDDEN),
        }
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "head_dim": head,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100.0,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "eos_token_id": tokenizer.token_to_id("<|end|>"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with teacher, texts, and the finished runs of the manifest under ``runs``."""
    folder = tmp_path_factory.mktemp("made")
    write_teacher(folder / "teacher")
    (folder / "train.txt").write_text(TEXT * 20)
    (folder / "heldout.txt").write_text((TEXT + FILLER + "\n") * 8)
    (folder / "manifest.yml").write_text(MANIFEST)
    assert call("run", folder / "manifest.yml", "--output", folder / "runs") == 0
    return folder


@pytest.fixture
def caramba(made: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Caramba:
    """The command, in that folder: its exit code, and what it wrote to stdout and stderr."""
    monkeypatch.chdir(made)

    def run(*arguments: object) -> Ran:
        capfd.readouterr()
        code = call(*arguments)
        said = capfd.readouterr()
        return code, said.out, said.err

    return run
