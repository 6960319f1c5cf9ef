"""From the configuration of a checkpoint to the words of a manifest (light).

The configuration is that of Hugging Face's ``config.json``; GGUF metadata is first put into the same words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from caramba_core.errors import InputError
from caramba_plugins_llama.families import FAMILIES, REFUSED, Family
from caramba_plugins_llama.known_keys import ROPE_TYPES, KnownKeys

__all__ = ["Fields", "key_of", "model_of"]

_COMMON: Final[dict[str, Any]] = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu"}
"""What every family assumes where ``config.json`` is silent."""

_LARGEST: Final = 2**31 - 1


class Fields:
    """Typed look-ups in a configuration; what is wrong is collected, so that one error tells all of it."""

    def __init__(self, values: Mapping[str, Any], origin: str, defaults: Mapping[str, Any]) -> None:
        self.values = values
        self.origin = origin
        self.defaults = defaults
        self.problems: list[str] = []

    def get(self, key: str) -> Any:
        """A raw value; the family's default where the key is missing (``null`` is a value)."""
        return self.values[key] if key in self.values else self.defaults.get(key)

    def integer(self, key: str, default: int | None = None) -> int:
        """A size: at least 1; a missing one without a default is a problem (and 1 from here on)."""
        value = self.get(key)
        if value is None:
            if default is not None:
                return default
            self.problems.append(f"{key} is missing")
        elif isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
            self.problems.append(f"{key} is {value!r}, not a size")
        else:
            return value
        return 1

    def number(self, key: str, default: float) -> float:
        """A positive number."""
        value = self.get(key)
        if value is None and key not in self.values:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            self.problems.append(f"{key} is {value!r}, not a positive number")
            return default
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(key)
        if value is None and key not in self.values:
            return default
        if not isinstance(value, bool):
            self.problems.append(f"{key} is {value!r}, not true or false")
            return default
        return value

    def choice(self, rule: bool | str) -> bool:
        """What a family fixes, or what the key that it names says."""
        return self.flag(rule) if isinstance(rule, str) else rule

    def finish(self) -> None:
        """Raise :class:`InputError` with everything that was wrong."""
        if self.problems:
            shown = "\n    ".join(self.problems)
            raise InputError(f"{self.origin} does not describe a model that caramba can build:\n    {shown}")


def model_of(config: Mapping[str, Any], origin: str, family: Family | None = None) -> dict[str, Any]:
    """The manifest's ``model:`` for a configuration; ``origin`` names the file in errors.

    ``family`` is given where the file says more than ``model_type`` does.  Raises :class:`InputError` listing all that
    is missing, wrong, not known or cannot be expressed.
    """
    family = family or _family(config, origin)
    fields = Fields(config, origin, {**_COMMON, **family.defaults})
    layers = fields.integer("num_hidden_layers")
    width = fields.integer("hidden_size")
    if fields.get("hidden_act") not in ("silu", "swish"):
        fields.problems.append(f"hidden_act is {fields.get('hidden_act')!r}; the MLP is gated by silu alone")
    norm = {"type": "rms_norm", "eps": fields.number("rms_norm_eps", 1e-6)}
    attention, windows = _attention(fields, family, width, layers)
    mlp: dict[str, Any] = {"type": "swiglu", "d_ff": fields.integer("intermediate_size")}
    if fields.choice(family.mlp_bias):
        mlp["bias"] = True
    blocks: dict[str, Any] = {
        "type": "nested",
        "name": "blocks",
        "repeat": layers,
        "layers": [
            {"type": "residual", "layers": [dict(norm), attention]},
            {"type": "residual", "layers": [dict(norm), mlp]},
        ],
    }
    if windows:
        blocks["each"] = {"attention.window": windows}
    model = {
        "type": "transformer",
        "tied_embeddings": fields.flag("tie_word_embeddings"),
        "embedder": {"type": "token", "vocab_size": fields.integer("vocab_size"), "d_model": width},
        "topology": {"type": "stacked", "layers": [blocks, dict(norm)]},
    }
    fields.problems += family.keys.problems(config)
    fields.finish()
    return model


_KEYS: Final = {
    "tied_embeddings": "tie_word_embeddings",
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "repeat": "num_hidden_layers",
    "eps": "rms_norm_eps",
    "qk_norm_eps": "rms_norm_eps",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "theta": "rope_theta",
    "scaling": "rope_type",
    "window": "sliding_window",
    "attention.window": "sliding_window",
    "d_ff": "intermediate_size",
    "qkv_bias": "attention_bias",
    "o_bias": "attention_bias",
    "bias": "mlp_bias",
}
"""A field of the manifest's model to the key of ``config.json`` that it follows from."""


def key_of(path: tuple[str | int, ...]) -> str | None:
    """The key of ``config.json`` behind the value at a path of :func:`model_of`; ``None`` where every model has it."""
    names = [part for part in path if isinstance(part, str)]
    if "rope" in names[:-1]:
        return _KEYS.get(names[-1], names[-1])
    return _KEYS.get(names[-1]) if names else None


def _family(config: Mapping[str, Any], origin: str) -> Family:
    kind = config.get("model_type")
    if kind == "mistral" and "layer_types" in config:
        return FAMILIES["ministral"]
    if isinstance(kind, str) and kind in FAMILIES:
        return FAMILIES[kind]
    if isinstance(kind, str) and kind in REFUSED:
        raise InputError(f"{origin} is a {kind} model, which caramba cannot express: {REFUSED[kind]}")
    known = ", ".join(FAMILIES)
    if kind is None:
        raise InputError(f"{origin} does not say its model_type", expected=known)
    raise InputError(f"{origin} is of model_type {kind!r}, which is not of the Llama family", expected=known)


def _attention(fields: Fields, family: Family, width: int, layers: int) -> tuple[dict[str, Any], list[int | None]]:
    """The attention of every block, and its windows where they differ by block."""
    heads = fields.integer("num_attention_heads")
    attention: dict[str, Any] = {
        "type": "gqa",
        "n_heads": heads,
        "n_kv_heads": fields.integer("num_key_value_heads", heads),
        "head_dim": fields.integer("head_dim", width // heads or 1),
        "rope": _rope(fields),
    }
    if heads % attention["n_kv_heads"]:
        fields.problems.append(
            f"num_key_value_heads {attention['n_kv_heads']} does not divide num_attention_heads {heads}"
        )
    if fields.get("head_dim") is None and width % heads:
        fields.problems.append(
            f"num_attention_heads {heads} does not divide hidden_size {width}, and head_dim is missing"
        )
    if fields.choice(family.qkv_bias):
        attention["qkv_bias"] = True
    if fields.choice(family.o_bias):
        attention["o_bias"] = True
    if family.qk_norm:
        attention["qk_norm_eps"] = fields.number("rms_norm_eps", 1e-6)
    windows = _windows(fields, family, layers)
    if windows and all(window == windows[0] for window in windows):
        if windows[0] is not None:
            attention["window"] = windows[0]
        return attention, []
    return attention, windows


def _windows(fields: Fields, family: Family, layers: int) -> list[int | None]:
    """How far back the tokens of each block see, themselves included; ``None``: everything."""
    window: int | None = None
    if family.window != "never" and not ("sliding_window" in fields.values and fields.values["sliding_window"] is None):
        window = fields.integer("sliding_window")  # null says that there is none; a missing key means the default
    slides, first = True, 0
    if family.window == "from_layer":
        slides = fields.flag("use_sliding_window")
        first = 0 if fields.values.get("max_window_layers") == 0 else fields.integer("max_window_layers")
    slides = slides and window is not None
    kinds = fields.get("layer_types")
    if kinds is None:
        return [window if slides and index >= first else None for index in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or not {*kinds} <= {"full_attention", "sliding_attention"}:
        fields.problems.append(f"layer_types is {kinds!r}, not full_attention or sliding_attention for {layers} layers")
        return []
    if "sliding_attention" in kinds and not slides:
        fields.problems.append("layer_types asks for sliding_attention, and there is no sliding window")
    return [window if kind == "sliding_attention" else None for kind in kinds]


# ------------------------------------------------------------------------------------------------ rotary positions

_SCALED_FROM: Final = "original_max_position_embeddings"


def _rope(fields: Fields) -> dict[str, Any]:
    """The rotary positions, from ``rope_parameters`` (new) or ``rope_theta`` and ``rope_scaling`` (old).

    Where a setting is given twice, the one that transformers follows counts: ``rope_scaling`` before
    ``rope_parameters``; what stands in the mapping before what stands beside it, except for the original context.
    """
    for key in ("rope_scaling", "rope_parameters"):
        if not (fields.get(key) is None or isinstance(fields.get(key), Mapping)):
            fields.problems.append(f"{key} is {fields.get(key)!r}, not a mapping")
            return {}
    given = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    context = fields.integer("max_position_embeddings")
    beside = {key: fields.values[key] for key in ("rope_theta", "partial_rotary_factor") if key in fields.values}
    values = {**beside, **given}
    values[_SCALED_FROM] = fields.get(_SCALED_FROM) or given.get(_SCALED_FROM) or context
    inner = Fields(values, fields.origin, {})
    rope: dict[str, Any] = {"theta": inner.number("rope_theta", 10000.0)}
    kind = given.get("rope_type", given.get("type", "default"))
    if inner.get("partial_rotary_factor") not in (None, 1):
        fields.problems.append(
            f"partial_rotary_factor is {inner.get('partial_rotary_factor')!r}; whole heads are rotated"
        )
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        length = ": its frequencies change with the length of the text" if kind in ("longrope", "su") else ""
        fields.problems.append(f"the rope type {kind!r} is not one of {', '.join(ROPE_TYPES)}{length}")
        return rope
    scaling, required, optional, ignored = ROPE_TYPES[kind]
    if scaling != "none":
        rope["scaling"] = scaling
    for key in required:
        if key == _SCALED_FROM:
            rope[key] = inner.integer(key)
        elif inner.get(key) is not None:
            rope[key] = inner.number(key, 1.0)
        elif key == "factor" and scaling == "yarn" and key in given:  # null; transformers refuses one that is missing
            rope[key] = context / inner.integer(_SCALED_FROM)
        else:
            inner.problems.append(f"{key} is missing, which {kind} rope scaling needs")
    for key in optional:
        if key == "truncate" and inner.get(key) is not None:
            rope[key] = inner.flag(key)
        elif inner.get(key):  # Hugging Face takes 0 as not given
            rope[key] = inner.number(key, 1.0)
    if scaling == "dynamic":
        rope[_SCALED_FROM] = context
    read = ("rope_type", "type", "rope_theta", "partial_rotary_factor", *required, *optional)
    unknown = KnownKeys(read=read, ignored=ignored).problems(given)
    fields.problems += [*inner.problems, *(f"{kind} rope scaling: {problem}" for problem in unknown)]
    return rope
