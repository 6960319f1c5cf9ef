"""Models that plans are held against: every topology, every attention, and what presets say."""

from __future__ import annotations

from typing import Any

from caramba_core.graph import Graph
from caramba_core.lowered import lower_all
from caramba_core.lowering import lower
from caramba_core.manifest.load import load_manifest
from caramba_core.manifest.structure import structure_model
from caramba_core.plugins.registry import registry

ROPE = {"theta": 100.0}
GQA = {"type": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "rope": ROPE}
DBA = {**GQA, "type": "dba", "sem_dim": 10, "geo_dim": 8, "v_dim": 7, "o_bias": True}
MLP = {"type": "swiglu", "d_ff": 32}


def residual(*layers: dict[str, Any]) -> dict[str, Any]:
    return {"type": "residual", "layers": [{"type": "rms_norm"}, *layers]}


def chain(*layers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "stacked", "layers": list(layers), **more}


def linear(width: int, **more: Any) -> dict[str, Any]:
    return {"type": "linear", "d_out": width, **more}


TOPOLOGIES: dict[str, dict[str, Any]] = {
    "stacked": chain(residual(GQA), residual(MLP)),
    "stacked_named": chain(chain(residual(GQA), name="first"), residual(MLP), {"type": "layer_norm"}),
    "nested": {"type": "nested", "repeat": 3, "layers": [residual(GQA), residual(MLP)]},
    "nested_each": {
        "type": "nested",
        "repeat": 3,
        "layers": [residual(DBA), residual(MLP)],
        "each": {"attention.sem_dim": [2, 4, 6], "mlp.d_ff": [8, 16, 8]},
    },
    "nested_twice": {
        "type": "nested",
        "repeat": 2,
        "layers": [{"type": "nested", "repeat": 2, "layers": [residual(GQA)]}],
    },
    "parallel_sum": {"type": "parallel", "layers": [GQA, chain({"type": "rms_norm"}, MLP)]},
    "parallel_mean": {"type": "parallel", "combine": "mean", "layers": [GQA, MLP]},
    "parallel_concatenate": {
        "type": "parallel",
        "combine": "concatenate",
        "d_out": 20,
        "layers": [GQA, linear(10, bias=True)],
    },
    "branching": {"type": "branching", "router": "softmax", "layers": [residual(GQA), MLP, linear(24)]},
    "branching_top_k": {"type": "branching", "router": {"type": "top_k", "k": 1}, "layers": [residual(GQA), MLP]},
    "recurrent": {"type": "recurrent", "times": 3, "layers": [residual(GQA), residual(MLP)]},
    "recurrent_inject": {"type": "recurrent", "times": 2, "inject": True, "layers": [residual(DBA)]},
    "recurrent_nested": {
        "type": "recurrent",
        "times": 2,
        "layers": [{"type": "recurrent", "times": 3, "layers": [residual(GQA)]}],
    },
    "cyclic": {"type": "cyclic", "times": 5, "layers": [residual(GQA), chain(residual(DBA), residual(MLP))]},
}

ATTENTIONS: dict[str, dict[str, Any]] = {
    "mha": {"type": "mha", "n_heads": 3, "head_dim": 8},
    "gqa_biases": {**GQA, "qkv_bias": True, "o_bias": True},
    "gqa_norms": {**GQA, "qk_norm_eps": 1e-6},
    "gqa_window": {**GQA, "window": 8},
    "dba": DBA,
    "dba_per_head": {**DBA, "sem_dim": 10, "v_dim": 8, "k_layout": "per_head", "v_layout": "per_head"},
    "dba_semantic": {**DBA, "geo_dim": 0},
    "dba_rotary": {**DBA, "sem_dim": 0},
    "dba_gate_window": {**DBA, "gate": "dynamic", "temperature": True, "window": 8},
    "dba_norms": {**DBA, "qk_norm_eps": 1e-6},
    "gqa_norm_of_all": {**GQA, "qk_norm_eps": 1e-6, "qk_norm_span": "all"},
    "dba_null": {**DBA, "null": True, "v_bias": True},
    "dba_tied": {**DBA, "tied_semantic": True, "gate": "static"},
}


def graph_of(topology: dict[str, Any], *, tied: bool = True, width: int = 24, vocabulary: int = 40) -> Graph:
    model = {
        "tied_embeddings": tied,
        "embedder": {"type": "token", "vocab_size": vocabulary, "d_model": width},
        "topology": topology,
    }
    return lower(structure_model(model))


def presets() -> list[str]:
    return [entry.name for entry in registry().entries("preset")]


def preset_graphs(preset: str) -> dict[str, Graph]:
    """The graphs of a preset's groups."""
    return lower_all(load_manifest(preset))[1]
