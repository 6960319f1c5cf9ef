"""The kit's checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from caramba_plugins_mla.attention import MultiHeadLatentAttention
from caramba_plugins_standard.decoding import chunks
from caramba_plugins_standard.rope import Rope
from caramba_plugins_testing import Case
from caramba_plugins_testing.checks.tokens import decoding

ROPE = Rope(theta=1000.0)
SIZES: dict[str, Any] = {"n_heads": 4, "head_dim": 8, "rank": 10, "rope_dim": 6, "rope": ROPE}


CASES = (
    Case(
        name="mla",
        config=MultiHeadLatentAttention(**SIZES),
        relative=True,
        bad=({"n_kv_heads": 3}, {"rope_dim": 7}, {"rope": None}, {"head_dim": 7}),
    ),
    Case(name="grouped", config=MultiHeadLatentAttention(**SIZES, n_kv_heads=2, o_bias=True), relative=True),
    Case(
        name="no_rope",
        config=MultiHeadLatentAttention(n_heads=3, head_dim=6, rank=5, rope_dim=0, q_bias=True),
        bad=({"k_bias": True},),
    ),
    Case(
        name="options",
        config=MultiHeadLatentAttention(
            **SIZES, n_kv_heads=1, q_bias=True, k_bias=True, o_bias=True, latent_norm_eps=1e-6, scale=0.4
        ),
    ),
    Case(
        name="servable",
        config=MultiHeadLatentAttention(**SIZES, n_kv_heads=2, latent_norm_eps=1e-6, layout="servable"),
        relative=True,
        bad=(
            {"latent_norm_eps": None},
            {"q_bias": True},
            {"k_bias": True},
            {"o_bias": True},
            {"rope_dim": 10},
            {"rope_dim": 0},
        ),
    ),
    Case(
        name="rope_of_its_own_width",
        config=MultiHeadLatentAttention(**{**SIZES, "head_dim": 7}, rope_width=6),
        relative=True,
        bad=({"rope_width": 5},),
    ),
    Case(name="wide_rope", config=MultiHeadLatentAttention(n_heads=2, head_dim=4, rank=3, rope_dim=14, rope=ROPE)),
)


@pytest.mark.components(*CASES)
def test_attention(component_check: Callable[[], None]) -> None:
    component_check()


@pytest.mark.parametrize("tile", [1, 5, 64])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_decoding_in_tiles(case: Case, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill behind a long cache, which is expanded tile by tile."""
    monkeypatch.setattr(chunks, "_SCORES", 0)
    monkeypatch.setattr(chunks, "_SMALLEST", tile)
    decoding(case)
