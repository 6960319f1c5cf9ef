"""Models with DBA as folders: with code of their own, or as the ordinary Llama that computes the same (light)."""

from __future__ import annotations

from collections.abc import Mapping, Set
from importlib.resources import files
from typing import Any, Final

import attrs
from caramba_plugins_llama.exporting import Decoder, ExportError, Folder, Original, Part, decoder_of, hugging_face_keys
from caramba_plugins_llama.standard_exporter import require_parts
from caramba_plugins_standard.quantized import Full, Int4, Int8
from caramba_plugins_standard.rope import Rope

__all__ = ["DBAExporter"]

_FILE: Final = "modeling_caramba_dba.py"

_USAGE: Final = """\
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{folder}", trust_remote_code=True)
"""

_OWN: Final = {
    **{f"{name}_proj": f"{name}_proj.weight" for name in ("q_geo", "k_geo", "q_sem", "k_sem", "k_up", "v_up", "gate")},
    **{f"{name}_bias": f"{name}_proj.bias" for name in ("q_geo", "k_geo", "q_sem")},
    **{name: name for name in ("pairs", "gate", "temperature", "null_key", "null_bias", "null_value")},
}
"""What Hugging Face's decoders do not have: weights of an attention, and what they are called there."""
_VALUE_BIAS: Final = {"dba": "self_attn.v_bias", "gqa": "self_attn.v_proj.bias"}
"""DBA's stands behind the cache, an ordinary attention's in the projection."""

_DBA: Final = (
    *("n_heads", "n_kv_heads", "head_dim", "sem_dim", "geo_dim", "v_dim", "geo_layout", "k_layout", "v_layout"),
    *("q_bias", "k_bias", "v_bias", "o_bias", "gate", "temperature", "tied_semantic", "null", "window", "latent"),
)
_GQA: Final = ("n_heads", "n_kv_heads", "head_dim", "qkv_bias", "o_bias")
_WINDOW: Final = (*_GQA, "window", "sinks")
_EXPRESSED: Final = {
    "dba": {*_DBA, "rope", "scale", "name", "layout", "cache"},
    "gqa": {*_GQA, "rope", "scale", "name", "init_std", "window", "qk_norm_eps", "cache"},
    "sliding_window": {*_WINDOW, "rope", "scale", "name", "init_std", "qk_norm_eps", "cache"},
}
_FIELDS: Final = {"dba": _DBA, "gqa": _GQA, "sliding_window": _WINDOW}
"""Fields that the modeling file knows; an attention that sets others is refused until the file has learned them."""

_FROM_ORIGIN: Final = ("max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
"""What the graph does not know; left out where nobody does, as programs take a ``null`` for a number."""


class DBAExporter:
    """Writes decoders with DBA: any as ``caramba``, those in the servable layout as ``llama``."""

    @classmethod
    def formats(cls) -> tuple[str, ...]:
        """With code of its own, and as an ordinary Llama."""
        return ("caramba", "llama")

    @classmethod
    def describe(cls, form: str, original: Original) -> Folder:
        """The folder of a decoder in which at least one attention is DBA, the others plain or windows with sinks."""
        decoder = decoder_of(original.graph)
        if form == "llama":
            from caramba_plugins_dba.export.ordinary import ordinary_folder

            return ordinary_folder(decoder, original.settings, original.tensors)
        return _with_code(decoder, original.model, original.settings)


def _with_code(decoder: Decoder, model: Mapping[str, Any], origin: Mapping[str, Any]) -> Folder:
    """The folder that brings its own modeling file."""
    _require_types(decoder)
    settings = [_attention(block.attention) for block in decoder.blocks]
    attentions: list[dict[str, Any]] = []
    for one in settings:
        if one not in attentions:
            attentions.append(one)
    keys = _keys(decoder)
    block = decoder.blocks[0]
    config = {
        "architectures": ["CarambaDBAForCausalLM"],
        "model_type": "caramba_dba",
        "auto_map": {
            "AutoConfig": f"{_FILE.removesuffix('.py')}.CarambaDBAConfig",
            "AutoModel": f"{_FILE.removesuffix('.py')}.CarambaDBAModel",
            "AutoModelForCausalLM": f"{_FILE.removesuffix('.py')}.CarambaDBAForCausalLM",
        },
        "vocab_size": decoder.embedder.config.vocab_size,
        "hidden_size": decoder.embedder.config.d_model,
        "intermediate_size": block.mlp.config.d_ff,
        "num_hidden_layers": len(decoder.blocks),
        "num_attention_heads": block.attention.config.n_heads,
        "num_key_value_heads": block.attention.config.n_kv_heads,
        "head_dim": block.attention.config.head_dim,
        "rms_norm_eps": block.norm.config.eps,
        "mlp_bias": block.mlp.config.bias,
        "tie_word_embeddings": decoder.tied,
        **{key: origin[key] for key in _FROM_ORIGIN if origin.get(key) is not None},
        "attentions": attentions,
        "attention_of_layer": [attentions.index(one) for one in settings],
        "caramba": {"model": dict(model), "keys": keys},
    }
    source = files("caramba_plugins_dba.export").joinpath(_FILE).read_text(encoding="utf-8")
    return Folder(config=config, keys=keys, files={_FILE: source}, usage=_USAGE)


def _require_types(decoder: Decoder) -> None:
    require_parts(decoder, ("dba", "gqa", "mha", "sliding_window"))
    first = decoder.blocks[0]
    for index, block in enumerate(decoder.blocks):
        if (block.norm.config.eps, block.norm_2.config.eps) != (decoder.norm.config.eps,) * 2:
            raise ExportError(f"the norms of block {index} add another eps than the last norm")
        if (block.mlp.config.d_ff, block.mlp.config.bias) != (first.mlp.config.d_ff, first.mlp.config.bias):
            raise ExportError(f"blocks 0 and {index} differ in their mlp", expected="blocks that are alike")
    if all(block.attention.type != "dba" for block in decoder.blocks):
        raise ExportError("none of its attentions is dba")


def _attention(part: Part) -> dict[str, Any]:
    """What ``config.json`` says of an attention: every number that its computation needs."""
    kind = "gqa" if part.type == "mha" else part.type
    config = part.config
    unknown = _set_beyond(config, _EXPRESSED[kind])
    if unknown:
        shown = ", ".join(f"{name}: {value}" for name, value in unknown.items())
        raise ExportError(
            f"{part.node.name} has {shown}, which {_FILE} does not know", expected="these at their default"
        )
    if kind != "dba" and config.qk_norm_eps is not None:
        raise ExportError(f"{part.node.name} has norms of queries and keys", expected="plain gqa beside dba")
    if kind == "gqa" and config.window is not None:
        raise ExportError(
            f"{part.node.name} has a window", expected="plain gqa beside dba", hint="type: sliding_window, sinks: 0"
        )
    rope: Rope | None = config.rope
    if rope is not None and rope.scaling == "dynamic":
        raise ExportError(f"{part.node.name} has dynamic rope scaling, whose frequencies are not fixed")
    return {
        "type": "dba" if kind == "dba" else "gqa",
        **{name: getattr(config, name) for name in _FIELDS[kind]},
        "scale": config.multiplier,
        "cache": _storage(part),
        "frequencies": [] if rope is None else rope.frequencies(config.head_dim),
        "frequency_scaling": 1.0 if rope is None else rope.attention_scaling,
    }


def _storage(part: Part) -> dict[str, int] | None:
    """How the attention's own cache rounds: bits of a value, and values of a block."""
    storage = part.config.cache
    if storage is None or isinstance(storage, Full):
        return None
    if type(storage) not in (Int8, Int4):
        name = type(storage).__name__
        raise ExportError(f"{part.node.name} has cache: {name}, which {_FILE} does not know", expected="int8 or int4")
    return {"bits": storage.bits, "block": storage.block}


def _set_beyond(config: Any, known: Set[str]) -> dict[str, Any]:
    """Fields outside ``known`` that differ from their default."""
    others = (field for field in attrs.fields(type(config)) if field.name not in known)
    found = {field.name: (getattr(config, field.name), field.default) for field in others}
    return {name: value for name, (value, default) in found.items() if value != default}


def _keys(decoder: Decoder) -> dict[str, str]:
    """The key of every parameter; ``{}`` stands for the number of a block where all blocks agree."""
    own = {f"blocks.{{}}.attention.{name}": f"model.layers.{{}}.self_attn.{key}" for name, key in _OWN.items()}
    keys = {**hugging_face_keys(), **own}
    for index, block in enumerate(decoder.blocks):
        kind = "dba" if block.attention.type == "dba" else "gqa"
        keys[f"blocks.{index}.attention.v_bias"] = f"model.layers.{index}.{_VALUE_BIAS[kind]}"
    return keys
