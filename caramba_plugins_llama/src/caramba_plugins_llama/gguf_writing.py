"""A model as a GGUF file that llama.cpp runs: the same that a folder of transformers' own classes holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import torch
from caramba_plugins_standard.libraries import library
from caramba_plugins_standard.loading import lower_checkpoint
from caramba_plugins_standard.rope import Rope
from torch import Tensor

from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_plugins_llama.configuration import model_of
from caramba_plugins_llama.exporting import Decoder, ExportError, Folder, decoder_of
from caramba_plugins_llama.families import ARCHITECTURES
from caramba_plugins_llama.gguf_file import GgufFile, gguf_keys
from caramba_plugins_llama.gguf_latent import LatentFile
from caramba_plugins_llama.head_rows import IN_HEADS, head_order, inverse, rows_in_order
from caramba_plugins_llama.known_keys import GGUF_NAMES
from caramba_plugins_llama.standard_exporter import difference

__all__ = ["QUANTS", "GgufModel", "gguf_model", "write_gguf"]

QUANTS: Final = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "q8_0": "float32"}
"""What ``--quant`` names, and the type that matrices are converted to before; everything else is in float32."""

_FILE_TYPES: Final = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
_BLOCK: Final = 32
"""Values that share a scale in q8_0."""

_ARCHITECTURES: Final = {"llama": "llama", "mistral": "llama", "ministral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_LISTS: Final = ("llama3", "listed")
"""Scalings whose factors are stored one a pair."""
_LATENT_NORM_EPS: Final = 1e-6
"""What is added to the mean square of the latents of a folder, which transformers fixes."""
_OFFSETS: Final = ("attention.q_bias", "attention.k_bias", "attention.v_bias")


@attrs.frozen(kw_only=True)
class GgufModel:
    """What a file says of a model: metadata under its full keys, and rotary factors where it lists them.

    ``decoder`` is the model that the file is read as; ``order`` the one that rows of queries and keys are written in
    within a head, where it is another than here; ``latent`` knows the tensors of latent attentions.
    """

    architecture: str
    metadata: Mapping[str, Any]
    factors: tuple[float, ...] | None
    decoder: Decoder
    order: tuple[int, ...] | None = None
    latent: LatentFile | None = None


def gguf_model(folder: Folder) -> GgufModel:
    """The metadata of a folder's model; raises :class:`ExportError` where llama.cpp has no words for it."""
    config = folder.config
    kind = config["model_type"]
    if kind == "deepseek_v3":
        return _latent_model(folder)
    if folder.files or kind not in _ARCHITECTURES:
        known = ", ".join((*_ARCHITECTURES, "deepseek_v3"))
        raise ExportError(f"{kind} is no architecture of GGUF that is written", expected=f"a model of {known}")
    decoder = decoder_of(lower(structure_model(model_of(config, "config.json"))))
    first = decoder.blocks[0].attention.config
    architecture = _ARCHITECTURES[kind]
    if architecture == "qwen2" and (
        first.n_heads * first.head_dim != config["hidden_size"] or first.rope.scaling in _LISTS
    ):
        architecture = "llama"  # which has offsets, too, and heads of any width
    if any(block.attention.config.window is not None for block in decoder.blocks):
        raise ExportError(
            f"its layers see a window, and llama.cpp has none for {architecture}",
            hint="without window: in its attentions it can be written; its cache then grows with the text",
        )
    if architecture == "qwen3" and (first.qkv_bias or first.o_bias):
        raise ExportError("llama.cpp has no offsets in the attentions of qwen3", expected="attention_bias: false")
    metadata = _named(architecture, config)
    metadata |= {
        f"{architecture}.{name}": first.head_dim for name in ("attention.value_length", "rope.dimension_count")
    }
    scaling, factors = _rotary(first.rope, first.head_dim, architecture)
    metadata |= {f"{architecture}.{key}": value for key, value in scaling.items()}
    order = head_order(first.head_dim, first.head_dim, adjacent=ARCHITECTURES[architecture].adjacent_pairs)
    return GgufModel(
        architecture=architecture,
        metadata=metadata,
        factors=factors,
        decoder=decoder,
        order=None if order is None else inverse(order),
    )


def _named(architecture: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata whose values stand in ``config.json`` as they are."""
    return {f"{architecture}.{key}": config[name] for key, name in GGUF_NAMES.items() if name in config}


def _latent_model(folder: Folder) -> GgufModel:
    """The metadata of a model whose attentions are DeepSeek's."""
    config, architecture = folder.config, "deepseek2"
    decoder = decoder_of(lower(structure_model(model_of(config, "config.json"))))
    if decoder.blocks[0].attention.config.rope.scaling != "none":
        raise ExportError(
            "llama.cpp's deepseek2 has no list of rotary frequencies: they must be at equal steps from 1 on",
            hint="the start of layout: servable chooses such ones, where the teacher's rope has no scaling",
        )
    latent, eps = LatentFile.of(config), config["rms_norm_eps"]
    decoder = decoder.with_attentions(  # one number is added to the mean squares of all norms
        lambda part: attrs.evolve(part.config, latent_norm_eps=eps)
    )
    own = {f"{architecture}.{key}": value for key, value in latent.metadata().items()}
    return GgufModel(
        architecture=architecture,
        metadata={**_named(architecture, config), **own},
        factors=None,
        decoder=decoder,
        latent=latent,
    )


def _rotary(rope: Rope | None, width: int, architecture: str) -> tuple[dict[str, Any], tuple[float, ...] | None]:
    """The metadata of a scaling, and the factors of those that llama.cpp takes as a list."""
    if rope is None:
        raise ExportError("it has no rotary positions, and llama.cpp turns every layer", expected="rope: in attention")
    if rope.scaling in _LISTS:
        if architecture != "llama":
            raise ExportError(f"llama.cpp has no place for rotary factors in {architecture}", expected="plain rope")
        if rope.attention_scaling != 1:
            raise ExportError(f"its rope has attention_factor {rope.attention_scaling}, and llama.cpp's list has none")
        pairs = zip(Rope(theta=rope.theta).frequencies(width), rope.frequencies(width), strict=True)
        return {}, tuple(plain / scaled for plain, scaled in pairs)
    if rope.scaling == "none":
        return {}, None
    if rope.scaling == "dynamic" or rope.truncate is False:
        raise ExportError(f"llama.cpp has no {rope.scaling} scaling of this kind", expected="linear, llama3 or yarn")
    found: dict[str, Any] = {"rope.scaling.type": rope.scaling, "rope.scaling.factor": rope.factor}
    if rope.scaling == "yarn":
        if (rope.beta_fast or 32, rope.beta_slow or 1) != (32, 1):
            raise ExportError("llama.cpp's yarn has beta_fast 32 and beta_slow 1", expected="these in rope:")
        usual = Rope(theta=rope.theta, scaling="yarn", factor=rope.factor, original_max_position_embeddings=1)
        found["rope.scaling.original_context_length"] = rope.original_max_position_embeddings
        if rope.attention_scaling != usual.attention_scaling:
            found["rope.scaling.attn_factor"] = rope.attention_scaling / usual.attention_scaling
    return found, None


def write_gguf(
    path: Path, model: GgufModel, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], quant: str
) -> None:
    """Write ``path``, and read it back: the same model, the same values.

    ``tensors`` by the names of the graph; matrices are stored as ``quant`` says, the rest in float32.  ``metadata``
    goes beside the model's own.  Raises :class:`ExportError` where rows are no whole blocks.
    """
    gguf = library("gguf", "GGUF files are written", extra="caramba-plugins-llama[gguf]")
    left = _without_zeros(tensors)
    writer = gguf.GGUFWriter(path, model.architecture)
    writer.add_quantization_version(2)
    writer.add_file_type(_FILE_TYPES[quant])
    for key, value in {**model.metadata, **metadata}.items():
        _add(writer, key, value)
    if model.factors is not None:
        writer.add_tensor("rope_freqs.weight", torch.tensor(model.factors, dtype=torch.float32).numpy())
    for key, (values, kind) in (stored := _file_tensors(gguf, model, left, quant)).items():
        writer.add_tensor(key, values, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    _require_same(gguf, GgufFile.open(path), model, stored)


def _file_tensors(gguf: Any, model: GgufModel, tensors: Mapping[str, Tensor], quant: str) -> dict[str, tuple[Any, Any]]:
    """What the file holds under each name: values, and GGUF's name for their type."""
    if model.latent is not None:
        parts = model.latent.stored(tensors, _LATENT_NORM_EPS)
        return {key: _stored(gguf, key, values, quant) for key, values in parts.items()}
    keys, found = gguf_keys(), {}
    for name, values in tensors.items():
        turned = model.order is not None and name.endswith(IN_HEADS)
        ordered = rows_in_order(values, model.order or ()) if turned else values
        found[_key(keys, name)] = _stored(gguf, name, ordered, quant)
    return found


def _without_zeros(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the offsets of queries, keys and values where all of them are zero: llama.cpp need not add them."""
    offsets = [name for name in tensors if name.endswith(_OFFSETS)]
    if any(tensors[name].any() for name in offsets):
        return dict(tensors)
    return {name: values for name, values in tensors.items() if name not in offsets}


def _stored(gguf: Any, name: str, values: Tensor, quant: str) -> tuple[Any, Any]:
    """A tensor as it is written, and GGUF's name for its type."""
    kind = gguf.GGMLQuantizationType[quant.upper() if values.dim() > 1 else "F32"]
    if quant == "q8_0" and values.dim() > 1 and values.shape[-1] % _BLOCK:
        raise ExportError(
            f"{name} has rows of {values.shape[-1]} values, and q8_0 has blocks of {_BLOCK}",
            hint="write it with --quant bf16, f16 or f32",
        )
    plain = values.float().contiguous().numpy()
    return (plain.astype("float16") if kind.name == "F16" else gguf.quants.quantize(plain, kind)), kind


def _key(keys: Mapping[str, str], name: str) -> str:
    if name in keys:
        return keys[name]
    _, index, local = name.split(".", 2)
    return keys[f"blocks.{{}}.{local}"].replace("{}", index)


def _add(writer: Any, key: str, value: Any) -> None:
    """An entry of the metadata, in the type that llama.cpp reads it in."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value:  # an empty list says nothing, and has no type
        writer.add_array(key, list(value))


def _require_same(gguf: Any, written: GgufFile, model: GgufModel, stored: Mapping[str, tuple[Any, Any]]) -> None:
    """What was written is read by caramba's own loader as the same model, and the same values, bit for bit."""
    found = decoder_of(lower_checkpoint(written))
    said = difference(_with_offsets(model.decoder, found), found)
    assert said is None, f"{written.path} says something else: {said}"
    whole = ((tensor, stored[tensor.name]) for tensor in written.header.tensors.values() if tensor.name in stored)
    left = dict(written.filled((tensor, torch.from_numpy(gguf.quants.dequantize(*pair))) for tensor, pair in whole))
    for name, values in written.tensors():
        assert torch.equal(values.float(), left.pop(name).float()), f"{name} came back otherwise"
    assert not left, f"not written: {', '.join(left)}"


def _with_offsets(decoder: Decoder, found: Decoder) -> Decoder:
    """The decoder without the offsets that are left out, as those of ``found`` are."""
    blocks = []
    for mine, theirs in zip(decoder.blocks, found.blocks, strict=True):
        config = mine.attention.config
        if hasattr(config, "qkv_bias"):
            config = attrs.evolve(config, qkv_bias=theirs.attention.config.qkv_bias)
        blocks.append(attrs.evolve(mine, attention=attrs.evolve(mine.attention, config=config)))
    return attrs.evolve(decoder, blocks=tuple(blocks))
