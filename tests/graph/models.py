"""Models in a manifest's words, lowered; and what is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest
from caramba_document.problem import Fault

from caramba_core.errors import Faults
from caramba_core.graph import Graph
from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model

GQA = {"type": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 6}
MLP = {"type": "swiglu", "d_ff": 32}
NORM = {"type": "rms_norm"}


def stacked(*layers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "stacked", "layers": list(layers), **more}


def residual(*layers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "residual", "layers": list(layers), **more}


def nested(repeat: int, *layers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "nested", "repeat": repeat, "layers": list(layers), **more}


def linear(width: int, **more: Any) -> dict[str, Any]:
    return {"type": "linear", "d_out": width, **more}


def model_of(*layers: dict[str, Any], tied: bool = False, **more: Any) -> dict[str, Any]:
    return {
        "tied_embeddings": tied,
        "embedder": {"type": "token", "vocab_size": 40, "d_model": 24},
        "topology": stacked(*layers),
        **more,
    }


def graph_of(*layers: dict[str, Any], tied: bool = False, **more: Any) -> Graph:
    return lower(structure_model(model_of(*layers, tied=tied, **more)))


def faults_of(*layers: dict[str, Any], tied: bool = False, **more: Any) -> tuple[Fault, ...]:
    with pytest.raises(Faults) as caught:
        graph_of(*layers, tied=tied, **more)
    return caught.value.faults


def names_of(graph: Graph) -> list[str]:
    return list(graph.nodes())
