"""Servable students as the ordinary Llama that computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs
import torch
from caramba_plugins_llama.exporting import Block, Decoder, ExportError, Folder, Part, refuse_export
from caramba_plugins_llama.standard_exporter import standard_folder
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.rope import Rope
from torch import Tensor

from caramba_core.errors import InvalidValue
from caramba_core.graph import local_name
from caramba_plugins_dba.absorbed import absorbed, frequencies_of
from caramba_plugins_dba.attention import DecoupledBottleneckAttention

__all__ = ["ordinary_folder"]

_STILL: Final = 1e30
"""What the frequency of a pair that does not turn is divided by: a million tokens on, cosine and sine are 1 and 0."""

_HINT: Final = "layout: servable holds to all of this (docs/serving.md says what each condition costs)"


def ordinary_folder(decoder: Decoder, origin: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Folder:
    """The folder of the Llama; raises :class:`ExportError` with every condition that fails."""
    if all(block.attention.type != "dba" for block in decoder.blocks):
        raise ExportError("none of its attentions is dba")
    blocks, problems = list[Block](), dict[str, list[str]]()
    for block in decoder.blocks:
        part = block.attention
        try:
            made = _as_gqa(part, _own(part, tensors))
            if blocks:
                _require_alike(blocks[0].attention.config, made)
            blocks.append(attrs.evolve(block, attention=Part(node=part.node, type="gqa", config=made)))
        except InvalidValue as error:
            said = [str(error), f"expected: {error.expected}" if error.expected else "", error.hint or ""]
            problems.setdefault("; ".join(filter(None, said)), []).append(part.node.name)
    joint = any(getattr(block.attention.config, "latent", "") == "joint" for block in decoder.blocks)
    refuse_export("the student is no ordinary Llama:", problems, None if joint else _HINT)  # no setting makes it one
    folder = standard_folder(attrs.evolve(decoder, blocks=tuple(blocks)), origin)

    def rewrite(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        found = dict(tensors)
        for old, new in zip(decoder.blocks, blocks, strict=True):
            found |= _rewritten(old.attention, new.attention.config, found)
        return found if folder.rewrite is None else folder.rewrite(found)

    return attrs.evolve(folder, rewrite=rewrite)


def _scope(part: Part) -> str:
    return f"{local_name(part.node.name)}."


def _own(part: Part, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one attention, by its own names."""
    return {name.removeprefix(_scope(part)): value for name, value in tensors.items() if name.startswith(_scope(part))}


def _servable(part: Part) -> DecoupledBottleneckAttention:
    """The config with the servable layout, which it need not name if its sizes are so."""
    if part.type != "dba":
        raise InvalidValue(None, f"{part.type} beside dba", expected="dba in every layer")
    config: DecoupledBottleneckAttention = attrs.evolve(part.config, layout="servable")
    return config


def _as_gqa(part: Part, own: Mapping[str, Tensor]) -> GroupedQueryAttention:
    """An attention as the ordinary one that computes the same; raises :class:`InvalidValue` where there is none."""
    config = _servable(part)
    theta, width = 10000.0 if config.rope is None else config.rope.theta, config.v_dim // config.groups
    pairs = zip(Rope(theta=theta).frequencies(width), frequencies_of(config, own), strict=True)
    return GroupedQueryAttention(
        n_heads=config.n_heads,
        n_kv_heads=config.groups,
        head_dim=width,
        rope=Rope(theta=theta, scaling="listed", factors=tuple(a / b if b else _STILL for a, b in pairs)),
        qkv_bias=not {"q_geo_bias", "q_sem_bias", "k_geo_bias"}.isdisjoint(own),
        o_bias=not {"v_bias", "o_bias"}.isdisjoint(own),
        window=config.window,
    )


def _require_alike(one: GroupedQueryAttention, other: GroupedQueryAttention) -> None:
    """Raise :class:`InvalidValue` where a layer differs from the first one; windows may."""
    if (one.n_kv_heads, one.head_dim) != (other.n_kv_heads, other.head_dim):
        raise InvalidValue(
            None,
            f"{other.n_kv_heads} x {other.head_dim} values, and {one.n_kv_heads} x {one.head_dim} in the first layer",
            expected="one size for all layers",
        )
    if one.rope != other.rope:
        raise InvalidValue(
            None,
            "rotary keys that turn with other frequencies than those of the first layer",
            expected="one list of frequencies for all layers, as the start of layout: servable chooses",
        )
    if (one.qkv_bias, one.o_bias) != (other.qkv_bias, other.o_bias):
        raise InvalidValue(None, "other offsets than those of the first layer", expected="the same in all layers")


def _rewritten(part: Part, config: GroupedQueryAttention, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """An attention's tensors taken out of all of them, and those that are written in their place, zeros included."""
    own = {name: tensors.pop(f"{_scope(part)}{name}") for name in _own(part, tensors)}
    made = dict(absorbed(_servable(part), own).weights)
    width = own["o_proj"].shape[0]
    for name, weight in config.weights(width).items():
        made.setdefault(name, torch.zeros(weight.shape))
    return {f"{_scope(part)}{name}": value.to(own["o_proj"].dtype) for name, value in made.items()}
