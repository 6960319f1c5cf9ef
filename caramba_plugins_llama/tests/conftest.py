"""Small checkpoints, written by transformers itself, and their logits, in 32 and in 64 bits."""

from __future__ import annotations

import contextlib
import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from caramba_plugins_standard.loading import Checkpoint, find_loader
from caramba_plugins_standard.loading.filling import load_weights
from torch import Tensor

from caramba_core.graph import Graph
from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel

from .local_hub import LocalHub, served_at

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.15,
    "pad_token_id": None,
}
"""A model that is small, with sizes that all differ, and weights large enough that every part moves the logits."""


LATENT: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "num_key_value_heads": 6,
        "q_lora_rank": None,
        "kv_lora_rank": 10,
        "first_k_dense_replace": 3,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "head_dim": 4,
        "n_routed_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 1,
    }
}
"""Families with latent attention, and the settings of a model of theirs that is read."""


def write_oracle(folder: Path, model_type: str, *, shards: bool = False, seed: int = 0, **config: Any) -> Any:
    """A random model of transformers, saved to ``folder`` by its own hand; norms and offsets are random too."""
    transformers = importlib.import_module("transformers")
    settings = transformers.AutoConfig.for_model(model_type, **{**SIZES, **config})
    torch.manual_seed(seed)
    with quiet():
        model = transformers.AutoModelForCausalLM.from_config(settings, attn_implementation="eager").eval()
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.3)
        model.save_pretrained(folder, max_shard_size="30KB" if shards else "1GB")
    return model


def graph_of(checkpoint: Checkpoint) -> Graph:
    """The graph of the model inside."""
    return lower(structure_model(checkpoint.model(), origin=str(checkpoint.path)))


def read_model(path: Path, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """The model of a checkpoint, through the same functions that a run uses."""
    checkpoint = find_loader(path)
    model = build(graph_of(checkpoint), dtype=dtype)
    load_weights(model, checkpoint)
    return model.requires_grad_(False).eval()


def random_tokens(count: int, *, batch: int = 2, vocabulary: int = 97, seed: int = 1) -> Tensor:
    """Token ids ``[batch, count]``."""
    return torch.randint(0, vocabulary, (batch, count), generator=torch.Generator().manual_seed(seed))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and warnings."""
    logging = importlib.import_module("transformers.utils.logging")
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)


class _Wide:
    """``torch`` whose 32-bit types are 64-bit."""

    float = float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextlib.contextmanager
def all_in_64_bits(model_type: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, transformers computes norms and rotary positions in 64 bits, where it otherwise insists on 32."""
    module = model_type.removesuffix("_text")
    with monkeypatch.context() as patch:
        for name in ("transformers.modeling_rope_utils", f"transformers.models.{module}.modeling_{module}"):
            patch.setattr(importlib.import_module(name), "torch", _Wide())
        patch.setattr(Tensor, "float", Tensor.double)
        torch.set_default_dtype(torch.float64)  # a whole number divided is of the default type
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tests run side by side, and tiny tensors are slower on two threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def _written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    write_oracle(folder / "one", "llama")
    write_oracle(folder / "shards", "llama", shards=True)
    return folder


@pytest.fixture
def folder(_written: Path, tmp_path: Path) -> Path:
    """A small Llama in one file, to be damaged."""
    return Path(shutil.copytree(_written / "one", tmp_path / "model"))


@pytest.fixture
def sharded(_written: Path, tmp_path: Path) -> Path:
    """The same model in shards."""
    return Path(shutil.copytree(_written / "shards", tmp_path / "sharded"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """What ``hf://`` leads to: a hub of this test's own."""
    with served_at(tmp_path / "cache", monkeypatch) as served:
        yield served
