"""Which distribution supplies which component, for components that may not be installed.

An error about an unknown name looks here for the distribution to install.
"""

from __future__ import annotations

from typing import Final

__all__ = ["CATALOGUE"]

_SUPPLIED: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "caramba-plugins-standard": {
        "layer": ("dropout", "feed_forward", "layer_norm", "linear", "multiply", "rms_norm", "swiglu"),
        "attention": ("gqa", "mha"),
        "embedder": ("token",),
        "head": ("linear",),
        "topology": ("branching", "cyclic", "nested", "parallel", "recurrent", "residual", "sequential", "stacked"),
        "router": ("softmax", "top_k"),
        "dataset": ("chats", "mixture", "text", "texts", "tokens"),
        "mode": ("generate", "train"),
        "reader": ("pretrained",),
        "storage": ("full", "int4", "int8"),
        "evaluator": ("perplexity",),
        "strategy": ("finetune", "pretrain"),
        "optimizer": ("adamw", "muon", "sgd"),
        "schedule": ("constant", "cosine", "linear"),
        "tracker": ("tensorboard", "trackio", "wandb"),
        "command": ("data",),
    },
    "caramba-plugins-llama": {
        "loader": ("gguf", "huggingface"),
        "source": ("hf",),
        "preset": ("smollm2_135m",),
        "exporter": ("standard",),
        "command": ("export",),
    },
    "caramba-plugins-upcycle": {
        "command": ("init",),
        "completer": ("attention",),
        "origin": ("teacher",),
        "moment": ("attended_key", "attended_value", "distance", "key", "key_value", "query"),
        "mode": ("allocate", "convert"),
        "strategy": ("upcycle.blockwise", "upcycle.global"),
    },
    "caramba-plugins-dba": {
        "attention": ("dba",),
        "transplant": ("gqa_to_dba",),
        "preset": (
            "llama32_1b_dba",
            "llama32_1b_servable",
            "smollm2_135m_dba",
            "smollm2_135m_joint",
            "smollm2_135m_servable",
        ),
        "exporter": ("dba",),
    },
    "caramba-plugins-decode": {
        "command": ("chat", "chats", "generate", "samples"),
    },
    "caramba-plugins-draw": {
        "command": ("graph",),
    },
    "caramba-plugins-eval": {
        "mode": ("eval",),
        "metric": ("agreement", "latency", "memory", "passkey", "perplexity", "position", "retrieval", "rolling"),
        "command": ("eval",),
    },
    "caramba-plugins-linear": {
        "attention": ("linear_attention",),
        "transplant": ("gqa_to_linear_attention", "mha_to_linear_attention"),
        "moment": ("sequences",),
        "preset": ("smollm2_135m_linear_attention",),
    },
    "caramba-plugins-lm-eval": {
        "metric": ("lm_eval",),
    },
    "caramba-plugins-mla": {
        "attention": ("mla",),
        "transplant": ("gqa_to_mla", "mha_to_mla"),
        "moment": ("attended_input",),
        "exporter": ("mla",),
        "preset": ("smollm2_135m_mla", "smollm2_135m_mla_servable"),
    },
    "caramba-plugins-report": {
        "command": ("compare", "report", "runs.diff", "runs.list", "runs.rm", "runs.show"),
        "completer": ("folder_of_runs", "run_folder"),
    },
    "caramba-plugins-sliding-window": {
        "attention": ("sliding_window",),
        "transplant": ("gqa_to_sliding_window", "mha_to_sliding_window"),
        "preset": ("smollm2_135m_sliding_window", "smollm2_135m_windows_dba"),
    },
    "caramba-plugins-tools": {
        "command": (
            "doctor",
            "explain",
            "plugins.check",
            "plugins.new",
            "plugins.show",
            "presets.list",
            "presets.show",
            "schema",
        ),
        "completer": ("component", "group", "manifest", "preset", "run", "setting"),
    },
}
"""The components of each kind, by distribution."""

CATALOGUE: Final[dict[str, dict[str, str]]] = {}
"""The distribution of each component, by kind."""
for _distribution, _kinds in _SUPPLIED.items():
    for _kind, _names in _kinds.items():
        CATALOGUE.setdefault(_kind, {}).update(dict.fromkeys(_names, _distribution))
