"""A latent attention in DeepSeek's words: what it has besides is multiplied into its projections, in float64.

Axes: H query heads, G key/value heads, d head width, e width of the rotary key, r rank, D width of the residual stream.
"""

from __future__ import annotations

import torch
from caramba_plugins_llama.exporting import Block
from torch import Tensor

from caramba_plugins_mla.attention import MultiHeadLatentAttention

__all__ = ["rewritten"]


def rewritten(block: Block, tensors: dict[str, Tensor], *, eps: float) -> dict[str, Tensor]:
    """The tensors of a block's first half in place of its own, which are taken out of ``tensors``.

    Queries take in scale and rotary factor, up projections are repeated for each query head, and the latent is as large
    as makes ``eps`` count as much in its norm as its own did.  The norm in front gives its weights to what reads it, so
    that the input of all projections has a mean square of 1: llama.cpp normalizes it once more on the way to queries.
    """
    config: MultiHeadLatentAttention = block.attention.config
    scope, norm = (part.node.name.removeprefix("model.") for part in (block.attention, block.norm))
    own = {name: tensors.pop(name) for name in list(tensors) if name.startswith((f"{scope}.", f"{norm}."))}
    dtype = own[f"{scope}.o_proj"].dtype
    wide = {name.removeprefix(f"{scope}."): values.detach().cpu().double() for name, values in own.items()}
    weight = wide.pop(f"{norm}.weight")  # [D]
    assert config.rope is not None and config.latent_norm_eps is not None
    factor = config.multiplier * (config.head_dim + config.rope_dim) ** 0.5
    turn = factor * config.rope.attention_scaling**2
    made = {
        "q_proj": wide["q_proj"] * weight * factor,
        "q_rope_proj": wide["q_rope_proj"] * weight * turn,
        "kv_down_proj": wide["kv_down_proj"] * weight * (eps / config.latent_norm_eps) ** 0.5,
        "k_rope_proj": wide["k_rope_proj"] * weight,
        "latent_norm": wide["latent_norm"],
        "k_up_proj": _for_each_head(config, wide["k_up_proj"]),
        "v_up_proj": _for_each_head(config, wide["v_up_proj"]),
        "o_proj": wide["o_proj"],
    }
    found = {f"{scope}.{name}": values.to(dtype) for name, values in made.items()}
    found[f"{norm}.weight"] = torch.ones_like(weight).to(dtype)
    return found | {f"{scope}.pairs": torch.arange(config.pairs)}


def _for_each_head(config: MultiHeadLatentAttention, up: Tensor) -> Tensor:
    """``[G d, r] -> [H d, r]``."""
    repeats = config.n_heads // config.n_kv_heads
    return up.view(config.n_kv_heads, config.head_dim, -1).repeat_interleave(repeats, dim=0).flatten(0, 1)
