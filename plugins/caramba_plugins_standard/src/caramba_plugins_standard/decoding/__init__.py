"""Decoding: attention to a cache as it is stored, prefill in tiles, and steps that are recorded once and replayed."""

from caramba_plugins_standard.decoding.attention import CachedPart, attend_cached, merge_attention
from caramba_plugins_standard.decoding.chunks import attend_chunk, too_many_scores
from caramba_plugins_standard.decoding.decoder import Decoder
from caramba_plugins_standard.decoding.rows import Rows, padded

__all__ = [
    "CachedPart",
    "Decoder",
    "Rows",
    "attend_cached",
    "attend_chunk",
    "merge_attention",
    "padded",
    "too_many_scores",
]
