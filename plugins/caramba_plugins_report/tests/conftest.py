"""Small runs of the real classes: a teacher that is trained and exported, its conversion, and what continues it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from caramba_core.cli import main

Ran = tuple[int, str, str]

TEACHER = """\
version: 1
name: teacher
model:
  type: transformer
  tied_embeddings: true
  embedder: {type: token, vocab_size: 50, d_model: 16}
  topology:
    type: stacked
    layers:
      - type: nested
        name: blocks
        repeat: 3
        layers:
          - type: residual
            layers:
              - {type: rms_norm}
              - {type: gqa, n_heads: 2, n_kv_heads: 2, head_dim: 8, rope: {theta: 100.0}}
          - {type: residual, layers: [{type: rms_norm}, {type: swiglu, d_ff: 32}]}
      - {type: rms_norm}
groups:
  - name: main
    data: {train: tokens.npy, heldout: tokens.npy}
    eval: {context: 32, windows: 4}
    runs:
      - id: pretrain
        mode: train
        steps: 8
        train: {strategy: pretrain, lr: 1.0e-2, batch_size: 2, context: 16, evaluate_every: 4, device: cpu}
"""
CONVERSION = """\
version: 1
name: small
vars: {v: 10, seed: 1}
model:
  from: teacher
  replace:
    attention: {type: dba, sem_dim: 4, geo_dim: 8, v_dim: "${v}", o_bias: true}
groups:
  - name: half
    teacher: {source: exported}
    data: {train: tokens.npy, heldout: tokens.npy}
    eval: {windows: 4, context: 32}
    runs:
      - {id: convert, mode: convert, device: cpu, start: {tokens: 256, max_context: 32, batch_size: 2}}
      - id: finetune
        mode: train
        seed: "${seed}"
        steps: 6
        verify: {perplexity_ratio_at_most: 9.0}
        train: {strategy: upcycle.global, trains: [attention], batch_size: 2, context: 32, lr: 1.0e-3, device: cpu,
                evaluate_every: 3}
      - {id: say, mode: generate, device: cpu, prompt: w1 w2 w3, max_new_tokens: 5}
  - {name: less, extends: half, vars: {v: 4, seed: 2}}
"""
WORDS = [*(f"w{index}" for index in range(48)), "<|endoftext|>", "?"]


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with manifests and their finished runs under ``runs``."""
    folder = tmp_path_factory.mktemp("made")
    np.save(folder / "tokens.npy", (np.cumsum(np.arange(400) % 7) % 48).astype(np.uint16))
    (folder / "teacher.yml").write_text(TEACHER)
    (folder / "small.yml").write_text(CONVERSION)
    assert call("run", folder / "teacher.yml", "--output", folder / "runs") == 0
    assert call("export", folder / "runs" / "teacher" / "main" / "pretrain", "-o", folder / "exported") == 0
    model = tokenizers.models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "exported" / "tokenizer.json"))
    assert call("run", folder / "small.yml", "--output", folder / "runs") == 0
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Those runs, to be changed by a test, in the folder ``runs`` of the working folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.fixture
def caramba(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """The command: its exit code, and what it wrote to stdout and stderr."""

    def run(*arguments: object) -> Ran:
        capfd.readouterr()
        code = call(*arguments)
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


def rewrite(path: Path, **changes: object) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
