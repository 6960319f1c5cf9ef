"""Which distribution supplies which component, for components that may not be installed.

An error about an unknown name looks here for the distribution to install.  Each kind maps names to distributions.
"""

from __future__ import annotations

from typing import Final

__all__ = ["CATALOGUE"]

CATALOGUE: Final[dict[str, dict[str, str]]] = {
    "layer": {
        "dropout": "caramba-plugins-standard",
        "layer_norm": "caramba-plugins-standard",
        "linear": "caramba-plugins-standard",
        "rms_norm": "caramba-plugins-standard",
        "swiglu": "caramba-plugins-standard",
    },
    "attention": {
        "dba": "caramba-plugins-dba",
        "gqa": "caramba-plugins-standard",
        "linear_attention": "caramba-plugins-linear",
        "mha": "caramba-plugins-standard",
        "mla": "caramba-plugins-mla",
        "sliding_window": "caramba-plugins-sliding-window",
    },
    "embedder": {
        "token": "caramba-plugins-standard",
    },
    "head": {
        "linear": "caramba-plugins-standard",
    },
    "topology": {
        "branching": "caramba-plugins-standard",
        "cyclic": "caramba-plugins-standard",
        "nested": "caramba-plugins-standard",
        "parallel": "caramba-plugins-standard",
        "recurrent": "caramba-plugins-standard",
        "residual": "caramba-plugins-standard",
        "sequential": "caramba-plugins-standard",
        "stacked": "caramba-plugins-standard",
    },
    "router": {
        "softmax": "caramba-plugins-standard",
        "top_k": "caramba-plugins-standard",
    },
    "origin": {
        "teacher": "caramba-plugins-upcycle",
    },
    "transplant": {
        "gqa_to_dba": "caramba-plugins-dba",
        "gqa_to_linear_attention": "caramba-plugins-linear",
        "gqa_to_mla": "caramba-plugins-mla",
        "gqa_to_sliding_window": "caramba-plugins-sliding-window",
        "mha_to_linear_attention": "caramba-plugins-linear",
        "mha_to_mla": "caramba-plugins-mla",
        "mha_to_sliding_window": "caramba-plugins-sliding-window",
    },
    "moment": {
        "attended_key": "caramba-plugins-upcycle",
        "attended_value": "caramba-plugins-upcycle",
        "distance": "caramba-plugins-upcycle",
        "key": "caramba-plugins-upcycle",
        "key_value": "caramba-plugins-mla",
        "query": "caramba-plugins-upcycle",
        "sequences": "caramba-plugins-linear",
    },
    "loader": {
        "gguf": "caramba-plugins-llama",
        "huggingface": "caramba-plugins-llama",
    },
    "source": {
        "hf": "caramba-plugins-llama",
    },
    "dataset": {
        "text": "caramba-plugins-standard",
        "tokens": "caramba-plugins-standard",
    },
    "mode": {
        "allocate": "caramba-plugins-upcycle",
        "convert": "caramba-plugins-upcycle",
        "eval": "caramba-plugins-standard",
        "generate": "caramba-plugins-standard",
        "train": "caramba-plugins-standard",
    },
    "reader": {
        "pretrained": "caramba-plugins-standard",
    },
    "storage": {
        "int4": "caramba-plugins-standard",
        "int8": "caramba-plugins-standard",
    },
    "evaluator": {
        "perplexity": "caramba-plugins-standard",
    },
    "strategy": {
        "pretrain": "caramba-plugins-standard",
        "upcycle.blockwise": "caramba-plugins-upcycle",
        "upcycle.global": "caramba-plugins-upcycle",
    },
    "optimizer": {
        "adamw": "caramba-plugins-standard",
        "muon": "caramba-plugins-standard",
        "sgd": "caramba-plugins-standard",
    },
    "schedule": {
        "constant": "caramba-plugins-standard",
        "cosine": "caramba-plugins-standard",
        "linear": "caramba-plugins-standard",
    },
    "preset": {
        "smollm2_135m": "caramba-plugins-llama",
        "llama32_1b_dba": "caramba-plugins-dba",
        "smollm2_135m_dba": "caramba-plugins-dba",
        "smollm2_135m_linear_attention": "caramba-plugins-linear",
        "smollm2_135m_mla": "caramba-plugins-mla",
        "smollm2_135m_sliding_window": "caramba-plugins-sliding-window",
    },
    "exporter": {
        "dba": "caramba-plugins-dba",
        "standard": "caramba-plugins-llama",
    },
    "command": {
        "data": "caramba-plugins-standard",
        "explain": "caramba-plugins-tools",
        "export": "caramba-plugins-llama",
        "graph": "caramba-plugins-draw",
        "plugins.check": "caramba-plugins-tools",
        "plugins.new": "caramba-plugins-tools",
        "plugins.show": "caramba-plugins-tools",
        "presets.list": "caramba-plugins-tools",
        "presets.show": "caramba-plugins-tools",
        "schema": "caramba-plugins-tools",
    },
}
