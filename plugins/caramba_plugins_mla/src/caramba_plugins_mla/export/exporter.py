"""Models with latent attention as the DeepSeek-V3 that computes the same, all of its layers dense (light)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import attrs
from caramba_plugins_llama.exporting import Decoder, ExportError, Folder, Original, Part, decoder_of, refuse_export
from caramba_plugins_llama.latent_exporter import latent_folder
from caramba_plugins_standard.rope import Rope

from caramba_core.graph import local_name
from caramba_plugins_mla.attention import MultiHeadLatentAttention

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MLAExporter"]

_HINT: Final = "layout: servable holds to all of this (docs/serving.md says what each condition costs)"
_SIZES: Final = ("n_heads", "head_dim", "rank", "rope_dim", "latent_norm_eps")
_COSTS: Final = {
    "latent_norm_eps": "a number, such as 1e-6; its start costs one value of the latent",
    "rope_dim": "2 or more",
    "q_bias": "false; a teacher whose queries have offsets has no such student",
    "k_bias": "false; a teacher whose keys have offsets has no such student",
    "o_bias": "false; it costs nothing, as the normalized latent has a component for it",
}
_NORM_EPS: Final = 1e-6
"""What DeepSeek's class in transformers adds to the mean square of a latent, whatever ``rms_norm_eps`` says."""

_ROUNDING: Final = 1e-9


class MLAExporter:
    """Writes decoders whose attentions are all MLA, with normalized latents, as ``deepseek_v3``."""

    @classmethod
    def formats(cls) -> tuple[str, ...]:
        """DeepSeek-V3 alone."""
        return ("deepseek_v3",)

    @classmethod
    def describe(cls, form: str, original: Original) -> Folder:
        """The folder; raises :class:`ExportError` with every condition that fails."""
        decoder, tensors = decoder_of(original.graph), original.tensors
        if all(block.attention.type != "mla" for block in decoder.blocks):
            raise ExportError("none of its attentions is mla")
        refuse_export("the student is no DeepSeek-V3:", _problems(decoder, tensors), _HINT)
        folder = latent_folder(_as_deepseek(decoder, tensors), original.settings)

        def rewrite(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            from caramba_plugins_mla.export.absorbed import rewritten

            found = dict(tensors)
            for block in decoder.blocks:
                found |= rewritten(block, found, eps=_NORM_EPS)
            return found

        return attrs.evolve(folder, rewrite=rewrite)


def _problems(decoder: Decoder, tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """What fails, and the attentions in which it does."""
    found: dict[str, list[str]] = {}
    first = decoder.blocks[0].attention
    for block in decoder.blocks:
        for problem in _of_attention(first, block.attention, tensors):
            found.setdefault(problem, []).append(block.attention.node.name)
        if block.norm.type == "rms_norm" and block.norm.config.offset:
            found.setdefault(f"its norm adds {block.norm.config.offset} to its weights", []).append(
                block.norm.node.name
            )
    return found


def _of_attention(first: Part, part: Part, tensors: Mapping[str, Tensor]) -> list[str]:
    if part.type != "mla":
        return [f"{part.type} beside mla; expected: mla in every layer"]
    if first.type != "mla":
        return []
    config: MultiHeadLatentAttention = part.config
    problems = []
    for field, needed in _COSTS.items():
        value = getattr(config, field)
        if bool(value) is field.endswith("_bias"):
            said = {None: "none", True: "true"}.get(value, str(value))
            problems.append(f"{field}: {said} is not DeepSeek's; expected: {needed}")
    problems += [
        f"{field}: {getattr(config, field)}, and {getattr(first.config, field)} in the first layer; expected: one size"
        for field in _SIZES
        if getattr(config, field) != getattr(first.config, field)
    ]
    if config.pairs and first.config.pairs and _frequencies(part, tensors) != _frequencies(first, tensors):
        problems.append(
            "its rotary key turns with other frequencies than that of the first layer; expected: one list for all "
            "layers, as the start of layout: servable chooses"
        )
    return problems


def _frequencies(part: Part, tensors: Mapping[str, Tensor]) -> tuple[float, ...]:
    """Radians a token of each pair of the shared key."""
    config: MultiHeadLatentAttention = part.config
    assert config.rope is not None
    available = config.rope.frequencies(config.turned_width)
    return tuple(available[pair] for pair in tensors[f"{local_name(part.node.name)}.pairs"].tolist())


def _as_deepseek(decoder: Decoder, tensors: Mapping[str, Tensor]) -> Decoder:
    """The decoder with DeepSeek's own attentions: as many keys and values as queries, and its scale."""
    config: MultiHeadLatentAttention = decoder.blocks[0].attention.config
    attention = MultiHeadLatentAttention(
        n_heads=config.n_heads,
        head_dim=config.head_dim,
        rank=config.rank,
        rope_dim=config.rope_dim,
        rope_width=config.rope_dim,
        rope=_rope(_frequencies(decoder.blocks[0].attention, tensors), config),
        latent_norm_eps=_NORM_EPS,
        scale=(config.head_dim + config.rope_dim) ** -0.5,
    )
    return decoder.with_attentions(lambda part: attention)


def _rope(frequencies: tuple[float, ...], config: MultiHeadLatentAttention) -> Rope:
    """A rotary embedding of the shared key's own width: plain where frequencies are at equal steps from 1 on."""
    assert config.rope is not None
    width, theta = 2 * len(frequencies), config.rope.theta
    if len(frequencies) > 1 and frequencies[0] == 1 and 0 < frequencies[1] < 1:
        theta = frequencies[1] ** (-width / 2)
    plain = Rope(theta=theta)
    pairs = list(zip(plain.frequencies(width), frequencies, strict=True))
    if all(abs(a - b) <= _ROUNDING * b for a, b in pairs):
        return plain
    return Rope(theta=theta, scaling="listed", factors=tuple(a / b for a, b in pairs))
