"""Models with standard attention as folders that transformers loads as they are (light)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import attrs
from caramba_plugins_standard.rope import Rope

from caramba_core.graph import local_name
from caramba_plugins_llama.configuration import model_of
from caramba_plugins_llama.exporting import Block, Decoder, ExportError, Folder, Original, decoder_of, hugging_face_keys
from caramba_plugins_llama.families import FAMILIES, Family

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "USAGE",
    "StandardExporter",
    "deviation",
    "difference",
    "field_difference",
    "require_parts",
    "require_plain",
    "rope_words",
    "shared_words",
    "standard_folder",
]

USAGE: Final = """\
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{folder}")
"""
_WRITTEN: Final = [FAMILIES[name] for name in ("llama", "mistral", "ministral", "qwen2", "qwen3")]
_ROUNDING: Final = 2e-7
"""Of a float32, relative to its value, after a division."""
_SPECIAL: Final = ("bos_token_id", "eos_token_id", "pad_token_id")


class StandardExporter:
    """Writes a model as the family that it started from, or as the first of Llama's own shape that says the same."""

    @classmethod
    def formats(cls) -> tuple[str, ...]:
        """The Llama family's own."""
        return ("llama",)

    @classmethod
    def describe(cls, form: str, original: Original) -> Folder:
        """The folder of the origin's family where all parts are its own, else of a plain decoder."""
        from caramba_plugins_llama.family_folder import family_folder

        graph, origin = original.graph, original.settings
        family = FAMILIES.get(str(origin.get("model_type")))
        if family is None or family.latent_norm_eps is not None:
            return standard_folder(decoder_of(graph), origin)
        usual = family in _WRITTEN
        try:
            return standard_folder(decoder_of(graph), origin) if usual else family_folder(graph, family, origin)
        except ExportError as first:
            try:
                return family_folder(graph, family, origin) if usual else standard_folder(decoder_of(graph), origin)
            except ExportError as second:
                if usual:
                    raise first from second
                raise ExportError(f"as {family.model_type}: {first}; else {second}") from second


def standard_folder(decoder: Decoder, origin: Mapping[str, Any]) -> Folder:
    """The folder of a decoder of grouped-query attention, RMSNorm and SwiGLU; ``origin`` as an exporter is given it.

    Families of Hugging Face have offsets for queries, keys, values and output together, or for the first three.  A
    model that has some of them alone is written with zeros for the others.
    """
    require_plain(decoder, ("gqa", "mha"))
    reasons = []
    attention = decoder.blocks[0].attention.config
    wider = [{}, *({name: True} for name in ("o_bias", "qkv_bias") if not getattr(attention, name))]
    families = sorted(_WRITTEN, key=lambda one: one.model_type != origin.get("model_type"))
    for zeros in wider if attention.o_bias or attention.qkv_bias else wider[:1]:
        widened = decoder.with_attentions(lambda part, zeros=zeros: attrs.evolve(part.config, **zeros))  # type: ignore[misc]
        for family in families:
            config = _config(widened, family, origin)
            reason = deviation(widened, config)
            if reason is None:
                return Folder(
                    config=config,
                    keys=hugging_face_keys(),
                    usage=USAGE,
                    rewrite=partial(_with_zeros, widened) if zeros else None,
                )
            if not zeros:
                reasons.append(f"{family.model_type}: {reason}")
    raise ExportError("no family that transformers knows says the same:\n    " + "\n    ".join(reasons))


def _with_zeros(decoder: Decoder, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, and zeros for the offsets of attentions that they lack."""
    found = dict(tensors)
    for block in decoder.blocks:
        name = local_name(block.attention.node.name)
        for key, weight in block.attention.config.weights(decoder.embedder.config.d_model).items():
            if f"{name}.{key}" not in tensors:
                found[f"{name}.{key}"] = tensors[f"{name}.o_proj"].new_zeros(weight.shape)
    return found


def require_parts(decoder: Decoder, attentions: tuple[str, ...]) -> None:
    """Raise :class:`ExportError` unless blocks are of these attentions, RMSNorm and SwiGLU, with an RMSNorm behind."""
    norm = ("rms_norm",)
    for block in decoder.blocks:
        wanted = ((block.attention, attentions), (block.norm, norm), (block.norm_2, norm), (block.mlp, ("swiglu",)))
        for part, types in wanted:
            if part.type not in types:
                raise ExportError(f"{part.node.name} is {part.type}", expected=" or ".join(types))
    if decoder.norm.type != "rms_norm" or decoder.embedder.type != "token" or decoder.head.type != "linear":
        raise ExportError("the model needs a token embedder, an rms_norm at the end and a linear head")


def require_plain(decoder: Decoder, attentions: tuple[str, ...]) -> None:
    """As :func:`require_parts`, and blocks are alike; attentions may differ in their windows."""
    require_parts(decoder, attentions)
    first = decoder.blocks[0]
    for index, block in enumerate(decoder.blocks):
        for name in ("norm", "norm_2", "mlp", "attention"):
            one, other = getattr(block, name).config, getattr(first, name).config
            if name == "attention" and hasattr(one, "window"):  # windows may differ by block, and do in some families
                one, other = attrs.evolve(one, window=None), attrs.evolve(other, window=None)
            if one != other:
                raise ExportError(f"blocks 0 and {index} differ in their {name}", expected="blocks that are alike")


def _config(decoder: Decoder, family: Family, origin: Mapping[str, Any]) -> dict[str, Any]:
    """What ``config.json`` of this family would have to say."""
    attention, mlp = decoder.blocks[0].attention.config, decoder.blocks[0].mlp.config
    config = {
        **shared_words(decoder, family, origin),
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": attention.head_dim,
    }
    if attention.rope is not None:
        config |= rope_words(attention.rope, config["max_position_embeddings"])
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


def shared_words(decoder: Decoder, family: Family, origin: Mapping[str, Any]) -> dict[str, Any]:
    """What ``config.json`` says in every family."""
    block: Block = decoder.blocks[0]
    context = origin.get("max_position_embeddings") or _context(block.attention.config.rope)
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": decoder.embedder.config.vocab_size,
        "hidden_size": decoder.embedder.config.d_model,
        "intermediate_size": block.mlp.config.d_ff,
        "num_hidden_layers": len(decoder.blocks),
        "num_attention_heads": block.attention.config.n_heads,
        "hidden_act": "silu",
        "max_position_embeddings": context or family.defaults["max_position_embeddings"],
        "rms_norm_eps": block.norm.config.eps,
        "tie_word_embeddings": decoder.tied,
        "attention_dropout": 0.0,
        **{key: origin.get(key) for key in _SPECIAL},
    }


def _context(rope: Rope | None) -> int | None:
    """The longest context that a scaling was made for."""
    if rope is None or rope.original_max_position_embeddings is None:
        return None
    stretch = 1.0 if rope.scaling == "dynamic" or rope.factor is None else rope.factor
    return int(rope.original_max_position_embeddings * stretch)


def rope_words(rope: Rope, context: int) -> dict[str, Any]:
    """In the old words (``rope_theta``, ``rope_scaling``) and the new (``rope_parameters``): each version reads one."""
    fields: dict[str, Any] = attrs.asdict(cast(Any, rope))
    theta, scaling = fields.pop("theta"), fields.pop("scaling")
    fields = {key: value for key, value in fields.items() if value is not None}
    if scaling == "listed":
        listed = list(fields["factors"])
        return _in_all_words(
            theta,
            {
                "rope_type": "longrope",
                "short_factor": listed,
                "long_factor": listed,
                "factor": 1.0,
                "attention_factor": rope.attention_scaling,
                "original_max_position_embeddings": context,
            },
        )
    if scaling == "none":
        return {
            "rope_theta": theta,
            "rope_scaling": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        }
    changes: dict[str, Any] = {}
    if scaling == "dynamic":  # the family's word for it is the configuration's own longest context
        changes["max_position_embeddings"] = fields.pop("original_max_position_embeddings")
    return {**_in_all_words(theta, {"rope_type": scaling, **fields}), **changes}


def _in_all_words(theta: float, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rope_theta": theta,
        "rope_scaling": dict(parameters),
        "rope_parameters": {**parameters, "rope_theta": theta},
    }


def deviation(decoder: Decoder, config: Mapping[str, Any]) -> str | None:
    """What a configuration, read again, says otherwise than the model; ``None`` if nothing."""
    from caramba_core.lowering import lower
    from caramba_core.manifest.structure import structure_model

    return difference(
        decoder, decoder_of(lower(structure_model(model_of(config, "config.json"), origin="config.json")))
    )


def difference(mine: Decoder, theirs: Decoder) -> str | None:
    """What one decoder says otherwise than another; ``None`` if nothing.

    Numbers are the same where they are as float32, which GGUF keeps them in.
    """
    found = (field_difference(*pair) for pair in zip(_parts(mine), _parts(theirs), strict=True))
    return next((reason for reason in found if reason is not None), None)


def field_difference(one: Any, other: Any) -> str | None:
    """The first field in which a component would be another; ``None`` if in none."""
    for field in attrs.fields(type(other)):
        if field.name not in ("name", "init_std", "cache"):
            said, heard = getattr(one, field.name), getattr(other, field.name)
            if said != heard and not _alike(one, said, heard):
                return f"{field.name} would be {heard}, not {said}"
    return None


def _alike(config: Any, one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= _ROUNDING * abs(one)
    if not isinstance(one, Rope) or not isinstance(other, Rope) or "dynamic" in (one.scaling, other.scaling):
        return False
    pairs = zip(one.frequencies(config.turned_width), other.frequencies(config.turned_width), strict=True)
    numbers = [(one.attention_scaling, other.attention_scaling), *pairs]
    return all(abs(a - b) <= _ROUNDING * abs(a) for a, b in numbers)


def _parts(decoder: Decoder) -> list[Any]:
    blocks = [part for b in decoder.blocks for part in (b.norm, b.attention, b.norm_2, b.mlp)]
    return [part.config for part in (decoder.embedder, *blocks, decoder.norm, decoder.head)]
