"""The kit's checks; cached decoding rounds its state to float32, whatever the type of the pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from caramba_plugins_linear.attention import LinearAttention
from caramba_plugins_standard.rope import Rope
from caramba_plugins_testing import Case

ROPE = Rope(theta=1000.0)
SIZES: dict[str, Any] = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "features": 6, "rope": ROPE}
ROUNDED: dict[str, Any] = {"decoding_tolerance": 1e-6}


@pytest.mark.components(
    Case(
        name="linear",
        config=LinearAttention(**SIZES, window=3, sinks=2),
        relative=True,
        bad=({"n_kv_heads": 3}, {"head_dim": 7}),
        **ROUNDED,
    ),
    Case(name="alone", config=LinearAttention(**SIZES, window=0, sinks=0), relative=True, **ROUNDED),
    Case(name="no_sinks", config=LinearAttention(**SIZES, window=4, sinks=0), relative=True, **ROUNDED),
    Case(name="no_window", config=LinearAttention(**SIZES, window=0, sinks=3), relative=True, **ROUNDED),
    Case(
        name="options",
        config=LinearAttention(
            n_heads=3,
            n_kv_heads=1,
            head_dim=6,
            features=11,
            window=2,
            sinks=1,
            qkv_bias=True,
            o_bias=True,
            scale=0.3,
            qk_norm_eps=1e-6,
        ),
        **ROUNDED,
    ),
)
def test_attention(component_check: Callable[[], None]) -> None:
    component_check()
