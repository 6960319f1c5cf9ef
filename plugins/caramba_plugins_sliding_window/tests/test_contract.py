"""The kit's checks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from caramba_plugins_sliding_window.attention import SlidingWindowAttention
from caramba_plugins_standard.rope import Rope
from caramba_plugins_testing import Case

ROPE = Rope(theta=1000.0)
SIZES = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "window": 5, "sinks": 2}


@pytest.mark.components(
    Case(
        name="text",
        config=SlidingWindowAttention(**SIZES, rope=ROPE),
        relative=True,
        bad=({"n_kv_heads": 3}, {"head_dim": 7}),
    ),
    Case(name="cache", config=SlidingWindowAttention(**SIZES, rope=ROPE, sink_positions="cache"), relative=True),
    Case(name="no_sinks", config=SlidingWindowAttention(**{**SIZES, "sinks": 0}, rope=ROPE), relative=True),
    Case(name="no_rope", config=SlidingWindowAttention(**SIZES, sink_positions="cache"), relative=True),
    Case(name="one_token", config=SlidingWindowAttention(**{**SIZES, "window": 1, "sinks": 1}, rope=ROPE)),
    Case(
        name="options",
        config=SlidingWindowAttention(
            n_heads=3, n_kv_heads=1, head_dim=6, window=3, rope=ROPE, qkv_bias=True, o_bias=True, qk_norm_eps=1e-6
        ),
    ),
)
def test_attention(component_check: Callable[[], None]) -> None:
    component_check()
