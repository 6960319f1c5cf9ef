"""From the configuration of a checkpoint to the words of a manifest (light).

The configuration is that of Hugging Face's ``config.json``; GGUF metadata is first put into the same words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from caramba_core.errors import InputError
from caramba_plugins_llama.families import FAMILIES, REFUSED, Family
from caramba_plugins_llama.known_keys import ROPE_TYPES, KnownKeys

__all__ = ["Fields", "attention_of", "family_of", "key_of", "model_of"]

_COMMON: Final[dict[str, Any]] = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu"}
"""What every family assumes where ``config.json`` is silent."""

_LARGEST: Final = 2**31 - 1


_LETTERS: Final = ("sliding_window_pattern",)
"""Keys whose number may be written as letters, ``LLLG``."""


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

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A size, at least ``least``; a missing one without a default is a problem (and 1 from here on)."""
        value = self.get(key)
        if value is None:
            if default is not None:
                return default
            self.problems.append(f"{key} is missing")
        elif isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
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
        """Raise :class:`InputError` with everything that was wrong.

        A key has the type that the family knows it with, also where other keys leave it unread.
        """
        for key, usual in self.defaults.items():
            value = self.values.get(key)
            if value is None or _is_like(value, usual) or (key in _LETTERS and isinstance(value, str)):
                continue
            if not any(problem.startswith(f"{key} is ") for problem in self.problems):
                self.problems.append(f"{key} is {value!r}, and {usual!r} is an ordinary value")
        if self.problems:
            shown = "\n    ".join(self.problems)
            raise InputError(f"{self.origin} does not describe a model that caramba can build:\n    {shown}")


def model_of(config: Mapping[str, Any], origin: str, family: Family | None = None) -> dict[str, Any]:
    """The manifest's ``model:`` for a configuration; ``origin`` names the file in errors.

    ``family`` is given where the file says more than ``model_type`` does.  Raises :class:`InputError` listing all that
    is missing, wrong, not known or cannot be expressed.
    """
    family = family or family_of(config, origin)
    fields = Fields(config, origin, {**_COMMON, **family.defaults})
    layers = fields.integer("num_hidden_layers")
    width = fields.integer("hidden_size")
    norm: dict[str, Any] = {"type": "rms_norm", "eps": fields.number("rms_norm_eps", 1e-6)}
    if family.norm_offset:
        norm["offset"] = family.norm_offset
    latent = family.latent_norm_eps is not None
    attentions = _latent_attentions(fields, family, layers) if latent else _attentions(fields, family, width, layers)
    mlp = _mlp(fields, family)
    blocks = _blocks([_block(fields, family, norm, attention, mlp) for attention in attentions])
    stack = [*_factor(fields, family, "embedding"), blocks, dict(norm), *_factor(fields, family, "logits")]
    model = {
        "type": "transformer",
        "tied_embeddings": fields.flag("tie_word_embeddings"),
        "embedder": {"type": "token", "vocab_size": fields.integer("vocab_size"), "d_model": width},
        "topology": {"type": "stacked", "layers": stack},
    }
    fields.problems += family.keys.problems(config)
    fields.finish()
    return model


def _block(
    fields: Fields, family: Family, norm: Mapping[str, Any], attention: dict[str, Any], mlp: dict[str, Any]
) -> list[dict[str, Any]]:
    """The two residuals of a block."""
    before = [norm] if family.norm_places != "behind" else []
    behind = [norm] if family.norm_places != "before" else []
    behind += _factor(fields, family, "residual")
    return [
        {"type": "residual", "layers": [dict(layer) for layer in (*before, part, *behind)]} for part in (attention, mlp)
    ]


def _blocks(blocks: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Blocks as they repeat: alike, with windows of their own, or of several kinds."""
    nested: dict[str, Any] = {"type": "nested", "name": "blocks", "repeat": len(blocks), "layers": blocks[0]}
    distinct = [block for index, block in enumerate(blocks) if block not in blocks[:index]]
    if len(distinct) == 1:
        return nested
    windows = [_attention_of(block).pop("window", None) for block in blocks]
    if all(block == blocks[0] for block in blocks):
        return {**nested, "each": {"attention.window": windows}}
    for block, window in zip(blocks, windows, strict=True):
        if window is not None:
            _attention_of(block)["window"] = window
    distinct = [block for index, block in enumerate(blocks) if block not in blocks[:index]]
    return {**nested, "variants": distinct[1:], "order": [distinct.index(block) for block in blocks]}


def attention_of(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """The attention of the first block of a model of :func:`model_of`."""
    blocks = next(layer for layer in model["topology"]["layers"] if layer["type"] == "nested")
    return _attention_of(blocks["layers"])


def _attention_of(block: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = next(layer for layer in block[0]["layers"] if layer["type"] in ("gqa", "mla"))
    return found


def _factor(fields: Fields, family: Family, which: str) -> list[dict[str, Any]]:
    """The layer that multiplies by one of the family's factors, unless it is 1."""
    by = _value_of(fields, family, which)
    return [] if by in (None, 1) else [{"type": "multiply", "by": by}]


def _value_of(fields: Fields, family: Family, which: str) -> float | None:
    factor = family.factors.get(which)
    return None if factor is None else fields.number(factor.key, 1.0) ** factor.exponent


def _mlp(fields: Fields, family: Family) -> dict[str, Any]:
    given = fields.get(family.activation)
    activation = family.activations.get(given) if isinstance(given, str) else None
    if activation is None:
        fields.problems.append(f"{family.activation} is {given!r}, not one of {', '.join(family.activations)}")
    size = {"d_ff": fields.integer("intermediate_size")}
    mlp: dict[str, Any] = {"type": "swiglu", **size}
    if (activation, family.gated) != ("silu", True):
        mlp = {"type": "feed_forward", **size, "activation": activation}
        if not family.gated:
            mlp["gated"] = False
    if fields.choice(family.mlp_bias):
        mlp["bias"] = True
    return mlp


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
    "activation": "hidden_act",
    "rotated": "partial_rotary_factor",
    "rank": "kv_lora_rank",
    "rope_dim": "qk_rope_head_dim",
    "rope_width": "qk_rope_head_dim",
}
"""A field of the manifest's model to the key of ``config.json`` that it follows from."""


def key_of(path: tuple[str | int, ...]) -> str | None:
    """The key of ``config.json`` behind the value at a path of :func:`model_of`; ``None`` where every model has it."""
    names = [part for part in path if isinstance(part, str)]
    if "rope" in names[:-1]:
        return _KEYS.get(names[-1], names[-1])
    return _KEYS.get(names[-1]) if names else None


def _is_like(value: Any, usual: Any) -> bool:
    """Whether a value is of the type of the usual one; numbers with a fraction may be written without."""
    if isinstance(usual, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return usual is None or (isinstance(value, type(usual)) and isinstance(value, bool) == isinstance(usual, bool))


def family_of(config: Mapping[str, Any], origin: str) -> Family:
    """The family of a configuration; raises :class:`InputError` where it is none that is read."""
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


def _attentions(fields: Fields, family: Family, width: int, layers: int) -> list[dict[str, Any]]:
    """The attention of every block."""
    heads = fields.integer("num_attention_heads")
    attention: dict[str, Any] = {
        "type": "gqa",
        "n_heads": heads,
        "n_kv_heads": fields.integer("num_key_value_heads", heads),
        "head_dim": fields.integer("head_dim", width // heads or 1),
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
    if (scale := _value_of(fields, family, "attention")) is not None:
        attention["scale"] = scale
    if family.qk_norm != "none":
        attention["qk_norm_eps"] = fields.number("rms_norm_eps", 1e-6)
        if family.qk_norm != "head":
            attention["qk_norm_span"] = family.qk_norm
        if family.norm_offset:
            attention["qk_norm_offset"] = family.norm_offset
    marks = _marks(fields, family, layers)
    windows = _windows(fields, family, layers, marks)
    kinds = {window is not None and family.rope_by_type is not None for window in windows}
    ropes = {slides: _rope(fields, family, attention["head_dim"], slides) for slides in sorted(kinds)}
    if family.rope_layers == "with_window" and any(window is not None for window in windows):
        marks = [window is not None for window in windows]
    made = []
    for window, marked in zip(windows, marks, strict=True):
        rope = ropes[window is not None and family.rope_by_type is not None]
        made.append({**attention, "rope": rope} if marked else dict(attention))
        if window is not None:
            made[-1]["window"] = window
    return made


def _latent_attentions(fields: Fields, family: Family, layers: int) -> list[dict[str, Any]]:
    """The attention of every block of DeepSeek's family; what it cannot be is a problem."""
    heads, content = fields.integer("num_attention_heads"), fields.integer("qk_nope_head_dim")
    rotary, queries = fields.integer("qk_rope_head_dim", least=2), fields.get("q_lora_rank")
    for key, wanted in (("num_key_value_heads", heads), ("v_head_dim", content), ("head_dim", rotary)):
        if fields.integer(key, wanted) != wanted:
            fields.problems.append(f"{key} is {fields.get(key)!r}: it is read at {wanted}")
    if queries is not None:
        fields.problems.append(
            f"q_lora_rank is {queries!r}: its queries come from a latent, too, which is missing here"
        )
    dense = fields.integer("first_k_dense_replace", least=0)
    if dense < layers:
        fields.problems.append(f"first_k_dense_replace is {dense}: the MLPs of {layers - dense} layers are experts")
    attention = {
        "type": "mla",
        "n_heads": heads,
        "head_dim": content,
        "rank": fields.integer("kv_lora_rank"),
        "rope_dim": rotary,
        "rope_width": rotary,
        "rope": _rope(fields, family, rotary, False),
        "latent_norm_eps": family.latent_norm_eps,
        "scale": (content + rotary) ** -0.5,
    }
    return [dict(attention) for _ in range(layers)]


def _marks(fields: Fields, family: Family, layers: int) -> list[bool]:
    """Which layers have rotary positions, where the configuration marks them."""
    if family.rope_layers != "marked":
        return [True] * layers
    marks, period = fields.get("no_rope_layers"), fields.integer("no_rope_layer_interval")
    if marks is None:
        return [(index + 1) % period != 0 for index in range(layers)]
    if not isinstance(marks, list) or len(marks) < layers or not all(type(mark) is int for mark in marks):
        fields.problems.append(f"no_rope_layers is {marks!r}, not a number for each of {layers} layers")
        return [True] * layers
    return [mark != 0 for mark in marks[:layers]]


def _windows(fields: Fields, family: Family, layers: int, marks: list[bool]) -> list[int | None]:
    """How far back the tokens of each block see, themselves included; ``None``: everything."""
    window: int | None = None
    if family.window != "never" and fields.get("sliding_window") is not None:
        window = fields.integer("sliding_window")
    slides = window is not None
    first = fields.integer("max_window_layers", least=0) if family.window == "from_layer" else 0
    if family.window in ("from_layer", "without_rope"):
        slides = fields.flag("use_sliding_window") and slides
    kinds = fields.get("layer_types")
    known = isinstance(kinds, list) and len(kinds) == layers and all(kind in _LAYER_TYPES for kind in kinds)
    if kinds is not None and not known:
        fields.problems.append(f"layer_types is {kinds!r}, not {' or '.join(_LAYER_TYPES)} for {layers} layers")
        return [None] * layers
    if kinds is None or family.window == "always":  # where all layers have the window, whatever they are called
        seen = _seen_through_windows(fields, family, marks, first)
        return [window if slides and through else None for through in seen]
    if "sliding_attention" in kinds and not slides:
        fields.problems.append("layer_types asks for sliding_attention, and there is no sliding window")
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _seen_through_windows(fields: Fields, family: Family, marks: list[bool], first: int) -> list[bool]:
    """Which layers have a window where ``layer_types`` is missing."""
    if family.window == "from_layer":
        return [index >= first for index in range(len(marks))]
    if family.window == "without_rope":
        return [not mark for mark in marks]
    if family.window == "pattern":
        period = fields.integer(family.period) if isinstance(family.period, str) else family.period
        return [index % period != family.full % period for index in range(len(marks))]
    return [True] * len(marks)


# ------------------------------------------------------------------------------------------------ rotary positions


_SCALED_FROM: Final = "original_max_position_embeddings"
_LAYER_TYPES: Final = ("full_attention", "sliding_attention")


def _rope(fields: Fields, family: Family, head_dim: int, slides: bool) -> dict[str, Any]:
    """The rotary positions, from ``rope_parameters`` (new) or ``rope_theta`` and ``rope_scaling`` (old).

    Where a setting is given twice, the one that transformers follows counts: ``rope_scaling`` before
    ``rope_parameters``; what stands in the mapping before what stands beside it, except for the original context.
    ``slides`` says whether they are those of layers with a window, where a family has others there.
    """
    for key in ("rope_scaling", "rope_parameters"):
        if not (fields.get(key) is None or isinstance(fields.get(key), Mapping)):
            fields.problems.append(f"{key} is {fields.get(key)!r}, not a mapping")
            return {}
    base = fields.defaults.get("rope_theta", 10000.0)
    beside = {key: fields.get(key) for key in ("rope_theta", "partial_rotary_factor") if key in fields.values}
    if family.rope_by_type is None:
        usual = fields.defaults.get("rope_parameters", {})  # null means them, too
        stated = fields.get("rope_parameters")
        given = fields.get("rope_scaling") or (usual if stated is None else stated)
    else:
        by_type = fields.get("rope_parameters") or {}
        others = [key for key in by_type if key not in _LAYER_TYPES or not isinstance(by_type[key], Mapping | None)]
        if others:
            fields.problems.append(
                f"rope_parameters has {', '.join(others)}, not settings by {', '.join(_LAYER_TYPES)}"
            )
            return {}
        given = by_type.get(_LAYER_TYPES[slides]) or {}
        if slides:
            key, base = family.rope_by_type
            beside = {"rope_theta": fields.get(key)} if key in fields.values else {}
        else:
            given = {**given, **(fields.get("rope_scaling") or {})}
    context = fields.integer("max_position_embeddings")
    values = {**beside, **given}
    fields.integer(_SCALED_FROM, context)  # whether it is used or not
    values[_SCALED_FROM] = fields.get(_SCALED_FROM) or given.get(_SCALED_FROM) or context
    inner = Fields(values, fields.origin, {})
    rope: dict[str, Any] = {"theta": inner.number("rope_theta", base)}
    kind = given.get("rope_type", given.get("type", "default"))
    factor = inner.get("partial_rotary_factor")
    if family.partial_rotary:
        factor = inner.number("partial_rotary_factor", fields.defaults.get("partial_rotary_factor", 1.0))
        rotated = int(head_dim * factor)
        if not 2 <= rotated <= head_dim or rotated % 2:
            fields.problems.append(f"partial_rotary_factor is {factor!r}: {rotated} of {head_dim} values would turn")
        elif rotated < head_dim:
            rope["rotated"] = rotated
    elif factor not in (None, 1):
        fields.problems.append(f"partial_rotary_factor is {factor!r}; whole heads are rotated")
    if not isinstance(kind, str) or kind not in family.rope_types:
        fields.problems.append(f"the rope type {kind!r} is not one of {', '.join(family.rope_types)}")
        return rope
    scaling, *known, ignored = ROPE_TYPES[kind]
    if scaling != "none":
        rope["scaling"] = scaling
    rope |= _listed(inner, context) if scaling == "listed" else _scaled(inner, given, context, kind)
    turning, factors = rope.get("rotated", head_dim), rope.get("factors")
    if factors is not None and 2 * len(factors) != turning:
        fields.problems.append(f"longrope lists {len(factors)} factors for heads of {turning} features")
    if scaling == "dynamic":
        rope[_SCALED_FROM] = context
    read = ("rope_type", "type", "rope_theta", "partial_rotary_factor", *sum(known, ()))
    unknown = KnownKeys(read=read, ignored=ignored).problems(given)
    fields.problems += [*inner.problems, *(f"{kind} rope scaling: {problem}" for problem in unknown)]
    return rope


def _scaled(fields: Fields, given: Mapping[str, Any], context: int, kind: str) -> dict[str, Any]:
    """The numbers that a rope type is scaled by."""
    rope: dict[str, Any] = {}
    _, required, optional, _ = ROPE_TYPES[kind]
    for key in required:
        if key == _SCALED_FROM:
            rope[key] = fields.integer(key)
        elif fields.get(key) is not None:
            rope[key] = fields.number(key, 1.0)
        elif key == "factor" and kind == "yarn" and key in given:  # null; transformers refuses one that is missing
            rope[key] = context / fields.integer(_SCALED_FROM)
        else:
            fields.problems.append(f"{key} is missing, which {kind} rope scaling needs")
    for key in optional:
        if key == "truncate" and fields.get(key) is not None:
            rope[key] = fields.flag(key)
        elif fields.get(key):  # Hugging Face takes 0 as not given
            rope[key] = fields.number(key, 1.0)
    return rope


def _listed(fields: Fields, context: int) -> dict[str, Any]:
    """The factors of longrope, where texts of every length have the same."""
    short, long = fields.get("short_factor"), fields.get("long_factor")
    if short != long:
        fields.problems.append(
            "short_factor and long_factor of longrope differ: its frequencies change with the length of the text"
        )
        return {}
    if not isinstance(short, list) or not all(type(one) in (int, float) and 0 < one < float("inf") for one in short):
        fields.problems.append(f"short_factor is {short!r}, not a list of positive numbers")
        return {}
    found: dict[str, Any] = {"factors": [float(one) for one in short]}
    original = fields.integer(_SCALED_FROM)
    factor = context / original if fields.get("factor") is None else fields.number("factor", 1.0)
    magnitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    if fields.get("attention_factor") is not None:
        magnitude = fields.number("attention_factor", 1.0)
    return found if magnitude == 1 else {**found, "attention_factor": magnitude}
