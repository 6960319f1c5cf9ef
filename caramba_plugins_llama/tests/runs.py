"""A run's folder with a random model, as a finished run leaves it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from caramba_core.graph import Graph
from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel
from caramba_core.run.checkpoint import save_checkpoint
from caramba_core.run.directory import RunDirectory

SUMMARY = {
    "name": "n",
    "group": "g",
    "run": "r",
    "seed": 3,
    "scored_tokens": 1234,
    "perplexity": {"teacher": 12.5, "start": 20.0, "end": 13.75},
    "perplexity_standard_error": {"teacher": 0.5, "start": 0.75, "end": 0.25},
    "perplexity_ratio": {"start": 1.6, "end": 1.1},
    "cache_bytes_per_token": {"teacher": 4096.0, "student": 2048.0},
    "cache_bytes_once": {"teacher": 0, "student": 512},
    "cache_context": 1024,
    "cache_dtype": "float32",
    "versions": {"caramba-core": "0.1.0"},
    "commit": "0123456789ab",
}


def decoder(
    attention: Mapping[str, Any] | list[Mapping[str, Any]],
    *,
    tied: bool = False,
    mlp_bias: bool = False,
    vocabulary: int = 61,
    **nested: Any,
) -> dict[str, Any]:
    """The ``model:`` of a small decoder with one attention for all of its two blocks, or one for each."""
    blocks = attention if isinstance(attention, list) else [attention]

    def layers(one: Mapping[str, Any]) -> list[dict[str, Any]]:
        norm = {"type": "rms_norm", "eps": 1e-5}
        mlp = {"type": "swiglu", "d_ff": 40, "bias": mlp_bias}
        return [{"type": "residual", "layers": [norm, one]}, {"type": "residual", "layers": [norm, mlp]}]

    assert len(blocks) == 1, "blocks that differ are made with each:"
    nest = {"type": "nested", "name": "blocks", "repeat": 2, "layers": layers(blocks[0]), **nested}
    return {
        "type": "transformer",
        "tied_embeddings": tied,
        "embedder": {"type": "token", "vocab_size": vocabulary, "d_model": 24},
        "topology": {"type": "stacked", "layers": [nest, {"type": "rms_norm", "eps": 1e-5}]},
    }


def make_run(
    folder: Path, model: dict[str, Any], *, teacher: str | None = None, dtype: torch.dtype = torch.float32
) -> LanguageModel:
    """Write the folder; the model that its checkpoint holds."""
    graph: Graph = lower(structure_model(model))
    built = build(graph, dtype=dtype, seed=7)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            parameter.mul_(8.0).add_(torch.randn(parameter.shape) * 0.1) if "norm" not in name else parameter.mul_(0.9)
    data = {"heldout": "heldout.npy"}
    group: dict[str, Any] = {"name": "g", "data": data, "runs": [{"id": "r", "mode": "eval"}]}
    if teacher is not None:
        group["teacher"] = {"source": teacher}
    folder.mkdir(parents=True)
    manifest = {"version": 1, "name": "n", "model": model, "groups": [group]}
    (folder / "manifest.yml").write_text(json.dumps(manifest))
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    directory = RunDirectory(folder)
    for step in (1, 2):
        save_checkpoint(directory.checkpoint(step), model=built, optimizer=None, state={"step": step})
    return built.requires_grad_(False).eval()
