"""Decoders with latent attention as the folder of a DeepSeek-V3 whose layers are all dense (light)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from caramba_plugins_llama.exporting import Decoder, ExportError, Folder, hugging_face_keys
from caramba_plugins_llama.families import FAMILIES
from caramba_plugins_llama.latent_rows import LatentRows
from caramba_plugins_llama.standard_exporter import USAGE, deviation, require_plain, rope_words, shared_words

__all__ = ["latent_folder"]

_NO_EXPERTS: Final = {
    "moe_intermediate_size": 1,
    "n_shared_experts": 1,
    "n_routed_experts": 1,
    "num_experts_per_tok": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "num_nextn_predict_layers": 0,
}
"""Valid, and never looked at: all layers stand before the first one with experts."""


def latent_folder(decoder: Decoder, origin: Mapping[str, Any]) -> Folder:
    """The folder of a decoder whose attentions are DeepSeek's own, in RMSNorm and SwiGLU.

    Raises :class:`ExportError` where the configuration, read again, would say something else.
    """
    require_plain(decoder, ("mla",))
    family, attention = FAMILIES["deepseek_v3"], decoder.blocks[0].attention.config
    config = {
        **shared_words(decoder, family, origin),
        "num_key_value_heads": attention.n_heads,
        "head_dim": attention.rope_dim,
        "q_lora_rank": None,
        "kv_lora_rank": attention.rank,
        "qk_nope_head_dim": attention.head_dim,
        "qk_rope_head_dim": attention.rope_dim,
        "v_head_dim": attention.head_dim,
        "rope_interleave": True,
        "attention_bias": False,
        "first_k_dense_replace": len(decoder.blocks),
        **_NO_EXPERTS,
    }
    config |= rope_words(attention.rope, config["max_position_embeddings"])
    reason = deviation(decoder, config)
    if reason is not None:
        raise ExportError(f"deepseek_v3 does not say the same: {reason}")
    return Folder(
        config=config,
        keys={**hugging_face_keys(family), "blocks.{}.attention.pairs": ""},
        usage=USAGE,
        latent=LatentRows.of(attention),
    )
