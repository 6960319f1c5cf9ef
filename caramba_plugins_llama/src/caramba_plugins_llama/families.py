"""The families that are read and written, as data: where Hugging Face's names lead, and what each family adds.

All of them are one decoder: RMSNorm, rotary attention, residual, RMSNorm, gated MLP, residual.  They differ in offsets,
norms of queries and keys, windows and default values; nothing of that is code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import attrs

from caramba_plugins_llama.known_keys import CONFIG, KnownKeys

__all__ = [
    "ARCHITECTURES",
    "EMBEDDINGS",
    "FAMILIES",
    "HEAD",
    "REFUSED",
    "Architecture",
    "Family",
    "graph_name",
    "hugging_face_keys",
]


@attrs.frozen(kw_only=True)
class Family:
    """One ``model_type`` of Hugging Face.

    ``defaults`` are the values of keys that ``config.json`` leaves out, where they differ from the common ones.  The
    biases say whether projections have offsets, or name the key that says so; ``qk_norm`` whether queries and keys are
    normalized over a head; ``window`` which layers see a window of ``sliding_window`` tokens: all, those that
    ``layer_types`` names (all where it is missing), or (where it is missing) those from ``max_window_layers`` on.
    """

    model_type: str
    architecture: str
    defaults: Mapping[str, Any] = attrs.field(factory=dict)
    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    window: Literal["never", "always", "by_layer", "from_layer"] = "never"

    @property
    def keys(self) -> KnownKeys:
        """The keys of ``config.json`` that are known."""
        named = {rule for rule in (self.qkv_bias, self.o_bias, self.mlp_bias) if isinstance(rule, str)}
        read = [*CONFIG.read, *sorted(named)]
        fixed = dict(CONFIG.fixed)
        for key, has in (("attention_bias", self.qkv_bias or self.o_bias), ("mlp_bias", self.mlp_bias)):
            if not has:
                fixed[key] = (False,), f"a {self.model_type} model has no such offsets"
        if self.window == "never":
            fixed["sliding_window"] = (), f"a {self.model_type} model has no window"
        else:
            read += ["sliding_window"]
        if self.window == "from_layer":
            read += ["use_sliding_window", "max_window_layers"]
        ignored = [key for key in (*CONFIG.ignored, "attention_bias", "mlp_bias") if key not in (*read, *fixed)]
        return KnownKeys(read=tuple(read), ignored=tuple(ignored), fixed=fixed)


FAMILIES: Final[dict[str, Family]] = {
    family.model_type: family
    for family in (
        Family(
            model_type="llama",
            architecture="LlamaForCausalLM",
            defaults={"max_position_embeddings": 2048},
            qkv_bias="attention_bias",
            o_bias="attention_bias",
            mlp_bias="mlp_bias",
        ),
        Family(
            model_type="mistral",
            architecture="MistralForCausalLM",
            defaults={"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
            window="always",
        ),
        Family(
            model_type="ministral",
            architecture="MinistralForCausalLM",
            defaults={"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
            window="by_layer",
        ),
        Family(
            model_type="qwen2",
            architecture="Qwen2ForCausalLM",
            defaults={
                "max_position_embeddings": 32768,
                "num_key_value_heads": 32,
                "sliding_window": 4096,
                "max_window_layers": 28,
            },
            qkv_bias=True,
            window="from_layer",
        ),
        Family(
            model_type="qwen3",
            architecture="Qwen3ForCausalLM",
            defaults={
                "max_position_embeddings": 32768,
                "num_key_value_heads": 32,
                "head_dim": 128,
                "sliding_window": 4096,
                "max_window_layers": 28,
            },
            qkv_bias="attention_bias",
            o_bias="attention_bias",
            qk_norm=True,
            window="from_layer",
        ),
    )
}
"""By ``model_type``.  Llama 1 to 3.x and SmolLM2 are ``llama``; Qwen2.5 is ``qwen2``; a ``mistral`` that has
``layer_types`` is a ``ministral``, in transformers too."""

REFUSED: Final[dict[str, str]] = {
    "gemma": "its norms scale by 1 + weight, its embeddings by the root of the width, and its MLP is gated by GELU",
    "gemma2": "it caps attention scores and logits softly and normalizes behind each layer",
    "gemma3_text": "it normalizes behind each layer and has two rotary bases",
    "gemma3": "it normalizes behind each layer and has two rotary bases",
    "phi3": "its query, key and value projections are stored as one",
    "mixtral": "its MLPs are a mixture of experts",
    "qwen2_moe": "its MLPs are a mixture of experts",
    "qwen3_moe": "its MLPs are a mixture of experts",
    "llama4": "its MLPs are a mixture of experts",
    "smollm3": "some of its layers have no rotary positions",
    "gpt2": "it has learned positions and no gated MLP",
}
"""Model types that are known and cannot be expressed, and why."""


# ------------------------------------------------------------------------------------------------ Hugging Face's names

EMBEDDINGS: Final = "embedder.weight"
HEAD: Final = "head.weight"
_OUTSIDE: Final = {"embed_tokens.weight": EMBEDDINGS, "norm.weight": "norm.weight", "lm_head.weight": HEAD}
_PROJECTIONS: Final = {
    **{f"self_attn.{name}_proj": f"attention.{name}" for name in ("q", "k", "v", "o")},
    **{f"mlp.{name}_proj": f"mlp.{name}" for name in ("gate", "up", "down")},
}
_BLOCK: Final = {
    "input_layernorm.weight": "norm.weight",
    "post_attention_layernorm.weight": "norm_2.weight",
    "self_attn.q_norm.weight": "attention.q_norm",
    "self_attn.k_norm.weight": "attention.k_norm",
    **{f"{key}.weight": f"{name}_proj" for key, name in _PROJECTIONS.items()},
    **{f"{key}.bias": f"{name}_bias" for key, name in _PROJECTIONS.items()},
}
_IGNORED: Final = ("self_attn.rotary_emb.inv_freq",)
"""Old checkpoints store rotary frequencies; they follow from the configuration."""


def graph_name(key: str) -> str | None:
    """The parameter that a Hugging Face tensor fills; ``None`` where none needs it, the key where none is known.

    The prefix ``model.`` may be missing (checkpoints of a model without head), or stand before the head.
    """
    bare = key.removeprefix("model.")
    if bare in _OUTSIDE:
        return _OUTSIDE[bare]
    layers, index, rest = [*bare.split(".", 2), "", ""][:3]
    if layers != "layers" or not index.isdecimal():
        return key
    if rest in _IGNORED:
        return None
    return f"blocks.{int(index)}.{_BLOCK[rest]}" if rest in _BLOCK else key


def hugging_face_keys() -> dict[str, str]:
    """The Hugging Face tensor that each parameter of the graph is written as; ``{}`` stands for a block's number."""
    blocks = {f"blocks.{{}}.{name}": f"model.layers.{{}}.{key}" for key, name in _BLOCK.items()}
    outside = {name: key if name == HEAD else f"model.{key}" for key, name in _OUTSIDE.items()}
    return {**outside, **blocks}


# ------------------------------------------------------------------------------------------------ GGUF's names


@attrs.frozen(kw_only=True)
class Architecture:
    """One ``general.architecture`` of GGUF: the family, and whether the rotary pairs lie side by side in a head."""

    model_type: str
    adjacent_pairs: bool


ARCHITECTURES: Final = {
    "llama": Architecture(model_type="llama", adjacent_pairs=True),
    "qwen2": Architecture(model_type="qwen2", adjacent_pairs=False),
    "qwen3": Architecture(model_type="qwen3", adjacent_pairs=False),
}
"""Mistral's files call themselves ``llama``."""
