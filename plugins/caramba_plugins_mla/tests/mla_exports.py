"""Runs with random MLA students: what the tests of the export share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from caramba_plugins_standard.loading import find_loader, lower_checkpoint
from caramba_plugins_standard.loading.filling import load_weights
from torch import Tensor

from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel
from caramba_core.run.checkpoint import save_checkpoint
from caramba_core.run.directory import RunDirectory

VOCABULARY, WIDTH, LAYERS = 61, 24, 3
SERVABLE: dict[str, Any] = {
    "type": "mla",
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 8,
    "rank": 10,
    "rope_dim": 6,
    "rope": {"theta": 500.0},
    "latent_norm_eps": 1e-6,
    "layout": "servable",
}


def model_of(attention: dict[str, Any], *, tied: bool = True, layers: int = LAYERS) -> dict[str, Any]:
    """The ``model:`` of a decoder."""
    norm = {"type": "rms_norm", "eps": 1e-5}
    block = [
        {"type": "residual", "layers": [norm, attention]},
        {"type": "residual", "layers": [norm, {"type": "swiglu", "d_ff": 40}]},
    ]
    return {
        "type": "transformer",
        "tied_embeddings": tied,
        "embedder": {"type": "token", "vocab_size": VOCABULARY, "d_model": WIDTH},
        "topology": {
            "type": "stacked",
            "layers": [{"type": "nested", "name": "blocks", "repeat": layers, "layers": block}, norm],
        },
    }


def make_run(folder: Path, model: dict[str, Any], *, pairs: Tensor | None = None) -> LanguageModel:
    """A run's folder as a finished run leaves it, with a random model; that model."""
    built = build(lower(structure_model(model)), seed=7)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.mul_(8.0).add_(noise * 0.1) if "norm" not in name else parameter.add_(noise * 0.3)
        for name, buffer in built.named_buffers():
            if name.endswith(".pairs") and pairs is not None:
                buffer.copy_(pairs)
    folder.mkdir(parents=True)
    group = {"name": "g", "data": {"heldout": "heldout.npy"}, "runs": [{"id": "r", "mode": "eval"}]}
    manifest = {"version": 1, "name": "n", "model": model, "groups": [group]}
    (folder / "manifest.yml").write_text(json.dumps(manifest))
    save_checkpoint(RunDirectory(folder).checkpoint(1), model=built, optimizer=None, state={})
    return built.requires_grad_(False).eval()


def again(path: Path, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """What caramba reads as a teacher."""
    checkpoint = find_loader(path)
    model = build(lower_checkpoint(checkpoint), dtype=dtype)
    load_weights(model, checkpoint)
    return model.requires_grad_(False).eval()


def random_tokens(count: int, *, batch: int = 2) -> Tensor:
    """``[batch, count]``."""
    return torch.randint(0, VOCABULARY, (batch, count), generator=torch.Generator().manual_seed(1))
