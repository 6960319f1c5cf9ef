"""A model of the real classes that is small enough for every test."""

from __future__ import annotations

from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel

TINY = {
    "type": "transformer",
    "tied_embeddings": True,
    "embedder": {"type": "token", "vocab_size": 40, "d_model": 24},
    "topology": {
        "type": "stacked",
        "layers": [
            {
                "type": "nested",
                "name": "blocks",
                "repeat": 2,
                "layers": [
                    {
                        "type": "residual",
                        "layers": [
                            {"type": "rms_norm"},
                            {"type": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "rope": {"theta": 100.0}},
                        ],
                    },
                    {"type": "residual", "layers": [{"type": "rms_norm"}, {"type": "swiglu", "d_ff": 32}]},
                ],
            },
            {"type": "rms_norm"},
        ],
    },
}


def tiny_model(seed: int) -> LanguageModel:
    return build(lower(structure_model(TINY)), seed=seed)
