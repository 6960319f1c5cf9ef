"""Models with standard attention as folders that transformers loads as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

import attrs
from caramba_plugins_standard.rope import Rope

from caramba_core.graph import Graph
from caramba_plugins_llama.configuration import model_of
from caramba_plugins_llama.exporting import Block, Decoder, ExportError, Folder, decoder_of, hugging_face_keys
from caramba_plugins_llama.families import FAMILIES, Family

__all__ = ["StandardExporter"]

_USAGE: Final = """\
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{folder}")
"""
_WRITTEN: Final = [FAMILIES[name] for name in ("llama", "mistral", "ministral", "qwen2", "qwen3")]
_SPECIAL: Final = ("bos_token_id", "eos_token_id", "pad_token_id")


class StandardExporter:
    """Writes a model as the first family that says the same, its origin's before the others."""

    @classmethod
    def describe(cls, graph: Graph, model: Mapping[str, Any], origin: Mapping[str, Any]) -> Folder:
        """The folder of a decoder of grouped-query attention, RMSNorm and SwiGLU."""
        decoder = decoder_of(graph)
        _require_types(decoder)
        reasons = []
        for family in sorted(_WRITTEN, key=lambda one: one.model_type != origin.get("model_type")):
            config = _config(decoder, family, origin)
            reason = _difference(decoder, config)
            if reason is None:
                return Folder(config=config, keys=hugging_face_keys(), usage=_USAGE)
            reasons.append(f"{family.model_type}: {reason}")
        raise ExportError("no family that transformers knows says the same:\n    " + "\n    ".join(reasons))


def _require_types(decoder: Decoder) -> None:
    first = decoder.blocks[0]
    for index, block in enumerate(decoder.blocks):
        for part, types in (
            (block.attention, ("gqa", "mha")),
            (block.norm, ("rms_norm",)),
            (block.norm_2, ("rms_norm",)),
            (block.mlp, ("swiglu",)),
        ):
            if part.type not in types:
                raise ExportError(f"{part.node.name} is {part.type}", expected=" or ".join(types))
        for name in ("norm", "norm_2", "mlp", "attention"):
            one, other = getattr(block, name).config, getattr(first, name).config
            if name == "attention":  # windows may differ by block, and do in some families
                one, other = attrs.evolve(one, window=None), attrs.evolve(other, window=None)
            if one != other:
                raise ExportError(f"blocks 0 and {index} differ in their {name}", expected="blocks that are alike")
    if decoder.norm.type != "rms_norm" or decoder.embedder.type != "token" or decoder.head.type != "linear":
        raise ExportError("the model needs a token embedder, an rms_norm at the end and a linear head")


def _config(decoder: Decoder, family: Family, origin: Mapping[str, Any]) -> dict[str, Any]:
    """What ``config.json`` of this family would have to say."""
    block: Block = decoder.blocks[0]
    attention, mlp = block.attention.config, block.mlp.config
    context = origin.get("max_position_embeddings")
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": decoder.embedder.config.vocab_size,
        "hidden_size": decoder.embedder.config.d_model,
        "intermediate_size": mlp.d_ff,
        "num_hidden_layers": len(decoder.blocks),
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": context or _context(attention.rope) or family.defaults["max_position_embeddings"],
        "rms_norm_eps": block.norm.config.eps,
        "tie_word_embeddings": decoder.tied,
        "attention_dropout": 0.0,
        **{key: origin.get(key) for key in _SPECIAL},
    }
    if attention.rope is not None:
        config |= _rope(attention.rope)
    if isinstance(family.qkv_bias, str):
        config[family.qkv_bias] = attention.qkv_bias
    if isinstance(family.mlp_bias, str):
        config[family.mlp_bias] = mlp.bias
    windows = [part.attention.config.window for part in decoder.blocks]
    given = next((window for window in windows if window is not None), None)
    if family.window != "never":
        config["sliding_window"] = given
    if family.window == "from_layer":
        config["use_sliding_window"] = given is not None
    if family.window in ("by_layer", "from_layer"):
        config["layer_types"] = ["full_attention" if window is None else "sliding_attention" for window in windows]
    return config


def _context(rope: Rope | None) -> int | None:
    """The longest context that a scaling was made for."""
    if rope is None or rope.original_max_position_embeddings is None:
        return None
    stretch = 1.0 if rope.scaling == "dynamic" or rope.factor is None else rope.factor
    return int(rope.original_max_position_embeddings * stretch)


def _rope(rope: Rope) -> dict[str, Any]:
    """In the old words (``rope_theta``, ``rope_scaling``) and the new (``rope_parameters``): each version reads one."""
    fields: dict[str, Any] = attrs.asdict(cast(Any, rope))
    theta, scaling = fields.pop("theta"), fields.pop("scaling")
    fields = {key: value for key, value in fields.items() if value is not None}
    if scaling == "none":
        return {
            "rope_theta": theta,
            "rope_scaling": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        }
    changes: dict[str, Any] = {}
    if scaling == "dynamic":  # the family's word for it is the configuration's own longest context
        changes["max_position_embeddings"] = fields.pop("original_max_position_embeddings")
    parameters = {"rope_type": scaling, **fields}
    return {
        "rope_theta": theta,
        "rope_scaling": parameters,
        "rope_parameters": {**parameters, "rope_theta": theta},
        **changes,
    }


def _difference(decoder: Decoder, config: Mapping[str, Any]) -> str | None:
    """What a configuration, read again, says otherwise than the model; ``None`` if nothing."""
    from caramba_core.lowering import lower
    from caramba_core.manifest.structure import structure_model

    again = decoder_of(lower(structure_model(model_of(config, "config.json"), origin="config.json")))
    for mine, theirs in zip(_parts(decoder), _parts(again), strict=True):
        for field in attrs.fields(type(theirs)):
            if field.name not in ("name", "init_std") and getattr(mine, field.name) != getattr(theirs, field.name):
                return f"{field.name} would be {getattr(theirs, field.name)}, not {getattr(mine, field.name)}"
    return None


def _parts(decoder: Decoder) -> list[Any]:
    blocks = [part for b in decoder.blocks for part in (b.norm, b.attention, b.norm_2, b.mlp)]
    return [part.config for part in (decoder.embedder, *blocks, decoder.norm, decoder.head)]
