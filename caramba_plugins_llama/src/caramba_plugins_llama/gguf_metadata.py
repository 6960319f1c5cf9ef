"""GGUF metadata in the words of Hugging Face's ``config.json`` (light)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from caramba_plugins_standard.rope import Rope

from caramba_core.errors import InputError
from caramba_plugins_llama.gguf_header import GgufHeader

__all__ = ["configuration", "metadata_key"]

_KEYS: Final = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
_FREQUENCIES: Final = "rope_freqs.weight"
_LLAMA3: Final[dict[str, Any]] = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Of every Llama 3 model released; GGUF keeps the resulting factors alone."""


def configuration(path: Path, header: GgufHeader, model_type: str) -> dict[str, Any]:
    """The configuration of a file; raises :class:`InputError` where it holds what caramba cannot express."""
    metadata = header.metadata
    prefix = f"{metadata['general.architecture']}."
    config: dict[str, Any] = {"model_type": model_type}
    for key, name in _KEYS.items():
        if prefix + key in metadata:
            value = metadata[prefix + key]
            config[name] = _shortest(value) if isinstance(value, float) else value
    if metadata.get(f"{prefix}expert_count", 0):
        raise InputError(f"{path}: its MLPs are a mixture of experts, which caramba cannot express")
    if "token_embd.weight" in header.tensors:
        config.setdefault("vocab_size", header.tensors["token_embd.weight"].shape[0])
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    config["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
    config["use_sliding_window"] = config.get("sliding_window") is not None
    config.setdefault("sliding_window", None)
    width = config.get("head_dim") or config.get("hidden_size", 0) // (config.get("num_attention_heads") or 1)
    if metadata.get(f"{prefix}rope.dimension_count", width) != width:
        raise InputError(
            f"{path}: {metadata[f'{prefix}rope.dimension_count']} of {width} dimensions of a head are rotated",
            expected="whole heads",
        )
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        if f"tokenizer.ggml.{key}_token_id" in metadata:
            config[f"{role}_token_id"] = metadata[f"tokenizer.ggml.{key}_token_id"]
    config["rope_scaling"] = _scaling(path, header, prefix, config, width)
    return config


def metadata_key(key: str, architecture: str) -> str:
    """What a key of ``config.json`` is called in GGUF metadata; itself where it follows from more than one entry."""
    found = next((name for name, other in _KEYS.items() if other == key), None)
    return key if found is None else f"{architecture}.{found}"


def _scaling(
    path: Path, header: GgufHeader, prefix: str, config: Mapping[str, Any], width: int
) -> dict[str, Any] | None:
    metadata = header.metadata
    if _FREQUENCIES in header.tensors:
        return _llama3(path, header, config, width)
    kind = metadata.get(f"{prefix}rope.scaling.type", "none")
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": _shortest(metadata.get(f"{prefix}rope.scaling.factor", 1.0))}
    if kind == "yarn":
        original = metadata.get(f"{prefix}rope.scaling.original_context_length")
        if original is not None:
            scaling["original_max_position_embeddings"] = original
    return scaling


def _llama3(path: Path, header: GgufHeader, config: Mapping[str, Any], width: int) -> dict[str, Any]:
    """The llama3 scaling whose factors a file stores: the longest waves are divided by the factor itself."""
    tensor = header.tensors[_FREQUENCIES]
    if tensor.dtype != "F32" or tensor.shape != (width // 2,):
        raise InputError(
            f"{path}: {_FREQUENCIES} is {tensor.dtype} {list(tensor.shape)}", expected=f"F32 [{width // 2}]"
        )
    with path.open("rb") as file:
        file.seek(tensor.offset)
        stored = struct.unpack(f"<{width // 2}f", file.read(tensor.bytes))
    factor = float(max(stored))
    theta = float(config.get("rope_theta", 10000.0))
    if factor >= 1:
        plain = Rope(theta=theta).frequencies(width)
        rope = Rope(theta=theta, scaling="llama3", factor=factor, **_LLAMA3)
        expected = [a / b for a, b in zip(plain, rope.frequencies(width), strict=True)]
        if all(abs(found - right) <= 1e-4 * right for found, right in zip(stored, expected, strict=True)):
            return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    raise InputError(
        f"{path}: its rotary factors ({_FREQUENCIES}) are not those of Llama 3, the only such scaling that is known",
        hint="use the Hugging Face checkpoint, whose configuration names the scaling",
    )


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 for 9.999999747378752e-06."""
    for digits in range(1, 9):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value
