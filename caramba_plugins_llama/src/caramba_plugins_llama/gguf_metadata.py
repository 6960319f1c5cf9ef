"""GGUF metadata in the words of Hugging Face's ``config.json`` (light)."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from caramba_plugins_standard.rope import Rope

from caramba_core.errors import InputError
from caramba_plugins_llama.families import FAMILIES, Architecture
from caramba_plugins_llama.gguf_header import GgufHeader
from caramba_plugins_llama.known_keys import GGUF_NAMES, GGUF_OUTSIDE

__all__ = ["configuration", "metadata_key"]

_HEADS: Final = "num_attention_heads"
_FREQUENCIES: Final = "rope_freqs.weight"
_LONGROPE: Final = ("rope_factors_long.weight", "rope_factors_short.weight")
_LLAMA3: Final[dict[str, Any]] = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Of every Llama 3 model released; GGUF keeps the resulting factors alone."""

_OPTIONAL: Final = ("attention.head_count_kv", "attention.key_length", "rope.freq_base", "vocab_size")
"""What llama.cpp has a default for."""


def configuration(path: Path, header: GgufHeader, architecture: Architecture) -> dict[str, Any]:
    """The configuration of a file; raises :class:`InputError` where it holds what is not known, or not expressed."""
    prefix = f"{header.metadata['general.architecture']}."
    keys = architecture.keys
    own = {key.removeprefix(prefix): value for key, value in header.metadata.items() if key.startswith(prefix)}
    rest = {key: value for key, value in header.metadata.items() if not key.startswith(prefix)}
    problems = [f"{prefix}{problem}" for problem in keys.problems(own)] + GGUF_OUTSIDE.problems(rest)
    required = [key for key in (*GGUF_NAMES, *architecture.required) if key not in _OPTIONAL]
    problems += [f"{prefix}{key} is missing" for key in required if key not in own]
    for key, value in own.items():
        if isinstance(value, list) and value and key in GGUF_NAMES:
            if any(item != value[0] for item in value):
                problems.append(f"{prefix}{key} is {value}: layers of several sizes are not read")
            own[key] = value = value[0]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if key in keys.read and key != "rope.scaling.type" and not number:
            problems.append(f"{prefix}{key} is {value!r}, not a number")
    if problems:
        _refuse(path, problems)
    config: dict[str, Any] = {"model_type": architecture.model_type, **architecture.settings}
    for key, name in {**GGUF_NAMES, **architecture.names}.items():
        if key in own and (own[key] != 0 or key in required or key in GGUF_NAMES):  # a factor of 0 is none
            config[name] = _shortest(own[key]) if isinstance(own[key], float) else own[key]
    if "token_embd.weight" in header.tensors:
        config.setdefault("vocab_size", header.tensors["token_embd.weight"].shape[0])
    width = config.setdefault("head_dim", config["hidden_size"] // (config[_HEADS] or 1))
    config.setdefault("num_key_value_heads", config[_HEADS])
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    scores = FAMILIES[architecture.model_type].factors.get("attention")
    if scores is not None:
        config.setdefault(scores.key, width ** (-0.5 / scores.exponent))
    config["sliding_window"] = None
    rotated, values = own.get("rope.dimension_count", width), own.get("attention.value_length", width)
    if architecture.latent:
        problems += _latent_sizes(own, config)
    elif rotated != width:
        problems.append(f"{rotated} of {width} dimensions of a head are rotated: whole heads are read")
    if values != width and not architecture.latent:
        problems.append(f"values have {values} dimensions a head, keys {width}: equal ones are read")
    window = own.get("attention.sliding_window", 0)
    if 0 < window < own["context_length"]:
        problems.append(f"{prefix}attention.sliding_window is {window}: llama.cpp has no window for this architecture")
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        if f"tokenizer.ggml.{key}_token_id" in header.metadata:
            config[f"{role}_token_id"] = header.metadata[f"tokenizer.ggml.{key}_token_id"]
    config["rope_scaling"] = _scaling(path, header, own, config, problems)
    if problems:
        _refuse(path, problems)
    return config


def _latent_sizes(own: Mapping[str, Any], config: dict[str, Any]) -> list[str]:
    """Sizes of a latent attention in Hugging Face's words; what is wrong with them."""
    rotary, rank, width = own["rope.dimension_count"], config["kv_lora_rank"], config.pop("qk_head_dim")
    config |= {
        "num_key_value_heads": config[_HEADS],  # one in the file: all heads read one latent
        "qk_rope_head_dim": rotary,
        "qk_nope_head_dim": width - rotary,
        "head_dim": rotary,
    }
    if config.pop("q_lora_rank", config["hidden_size"]) != config["hidden_size"]:
        return [f"attention.q_lora_rank is {own['attention.q_lora_rank']}: its queries come from a latent, too"]
    config["q_lora_rank"] = None
    if (own.get("attention.key_length"), own.get("attention.value_length")) != (rank + rotary, rank):
        return ["its keys and values are not those of one latent: old files hold attn_kv_b, which is not read"]
    return []


def metadata_key(key: str, architecture: str) -> str:
    """What a key of ``config.json`` is called in GGUF metadata; itself where it follows from more than one entry."""
    found = next((name for name, other in GGUF_NAMES.items() if other == key), None)
    return key if found is None else f"{architecture}.{found}"


def _refuse(path: Path, problems: list[str]) -> NoReturn:
    shown = "\n    ".join(problems)
    raise InputError(f"{path} does not describe a model that caramba can build:\n    {shown}")


def _scaling(
    path: Path, header: GgufHeader, own: Mapping[str, Any], config: Mapping[str, Any], problems: list[str]
) -> dict[str, Any] | None:
    """As llama.cpp scales: linearly where the type is missing; its factor on cos and sin is part of yarn alone here."""
    kind = own.get("rope.scaling.type", "linear")
    factor = own.get("rope.scaling.factor", own.get("rope.scale_linear", 0.0)) or 1.0
    factor = 1.0 if kind == "none" else _shortest(float(factor))
    magnitude = own.get("rope.scaling.attn_factor", 1.0)
    if any(name in header.tensors for name in _LONGROPE) or kind == "longrope":
        problems.append("its rotary factors are longrope's, which change with the length of the text")
    elif kind not in ("none", "linear", "yarn"):
        problems.append(f"the rope type {kind!r} is not one of none, linear, yarn")
    elif magnitude != 1 and kind != "yarn":
        problems.append(f"rope.scaling.attn_factor is {magnitude}: it is read with yarn alone")
    if _FREQUENCIES in header.tensors:
        if factor != 1 or config["model_type"] != "llama":
            problems.append(f"{_FREQUENCIES} is read of llama alone, and without another scaling")
        return _stored(path, header, config, config["head_dim"])
    if kind != "yarn":
        return None if factor == 1 else {"rope_type": "linear", "factor": factor}
    original = own.get("rope.scaling.original_context_length", own["context_length"])
    scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    if magnitude != 1:
        scaling["attention_factor"] = magnitude * (1 + 0.1 * math.log(max(factor, 1.0)))
    return scaling


def _stored(path: Path, header: GgufHeader, config: Mapping[str, Any], width: int) -> dict[str, Any]:
    """The scaling whose factors a file stores: llama3 where they are its own, else longrope of this one list."""
    tensor = header.tensors[_FREQUENCIES]
    if tensor.dtype != "F32" or tensor.shape != (width // 2,):
        raise InputError(
            f"{path}: {_FREQUENCIES} is {tensor.dtype} {list(tensor.shape)}", expected=f"F32 [{width // 2}]"
        )
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        stored = struct.unpack(f"<{width // 2}f", file.read(tensor.bytes))
    if not all(0 < factor < math.inf for factor in stored):
        raise InputError(f"{path}: {_FREQUENCIES} holds a factor that is no positive number", hint="fetch it again")
    factor = float(max(stored))
    theta = float(config.get("rope_theta", 10000.0))
    if factor >= 1:
        plain = Rope(theta=theta).frequencies(width)
        rope = Rope(theta=theta, scaling="llama3", factor=factor, **_LLAMA3)
        expected = [a / b for a, b in zip(plain, rope.frequencies(width), strict=True)]
        if all(abs(found - right) <= 1e-4 * right for found, right in zip(stored, expected, strict=True)):
            return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    listed = [_shortest(each) for each in stored]
    context = config["max_position_embeddings"]
    return {
        "rope_type": "longrope",
        "short_factor": listed,
        "long_factor": listed,
        "attention_factor": 1.0,
        "factor": 1.0,
        "original_max_position_embeddings": context,
    }


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 for 9.999999747378752e-06."""
    for digits in range(1, 9):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value
