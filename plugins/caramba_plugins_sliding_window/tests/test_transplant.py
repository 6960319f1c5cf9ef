"""The start from grouped-query attention: exact while nothing lies outside the window."""

from __future__ import annotations

import pytest
import torch
from caramba_plugins_sliding_window.attention import SlidingWindowAttention
from caramba_plugins_sliding_window.module import SlidingWindowModule
from caramba_plugins_sliding_window.transplant import GQAToSlidingWindow
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.gqa_module import GroupedQueryAttentionModule
from caramba_plugins_standard.rope import Rope
from caramba_plugins_upcycle.transplant import Calibrated

from caramba_core.errors import InvalidValue
from caramba_core.nn.frame import Frame

ROPE = Rope(theta=100.0)
SIZES = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "rope": ROPE}


def teacher(**options: object) -> GroupedQueryAttentionModule:
    module = GroupedQueryAttentionModule(GroupedQueryAttention(**SIZES, **options), 13).double()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
    return module


@pytest.mark.parametrize(
    "options", [{}, {"qkv_bias": True, "o_bias": True, "qk_norm_eps": 1e-5, "scale": 0.7}], ids=str
)
def test_exact_while_the_text_fits(options: dict[str, object]) -> None:
    source = teacher(**options)
    target = SlidingWindowAttention(**SIZES, window=6, sinks=3, **{"o_bias": True, **options})  # type: ignore[arg-type]
    transplant = GQAToSlidingWindow()
    transplant.check(source.config, target, 13)  # type: ignore[arg-type]
    seen = Calibrated(config=source.config, weights=source.state_dict(), width=13)  # type: ignore[arg-type]
    started = transplant.start(seen, target)
    assert started.weights.keys() == target.weights(13).keys()
    module = SlidingWindowModule(target, 13).double()
    module.load_state_dict(dict(started.weights))
    x = torch.randn(2, 20, 13, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    frame = Frame(positions=torch.arange(20))
    difference = (module(x, frame) - source(x, frame)).abs().amax(dim=(0, 2))
    assert difference[:9].max() < 1e-12
    assert difference[9:].min() > 1e-6


@pytest.mark.parametrize(
    ("source", "target", "field"),
    [
        ({}, {"head_dim": 8}, "head_dim"),
        ({}, {"rope": None}, "rope"),
        ({}, {"scale": 2.0}, "scale"),
        ({"window": 4}, {"window": 5}, "window"),
        ({"qk_norm_eps": 1e-5}, {}, "qk_norm_eps"),
        ({"qkv_bias": True}, {}, "qkv_bias"),
        ({"o_bias": True}, {}, "o_bias"),
    ],
    ids=str,
)
def test_refuses_what_it_cannot_start(source: dict[str, object], target: dict[str, object], field: str | None) -> None:
    given = GroupedQueryAttention(**{**SIZES, **source})  # type: ignore[arg-type]
    wanted = SlidingWindowAttention(**{**SIZES, "window": 6, **target})  # type: ignore[arg-type]
    with pytest.raises(InvalidValue) as caught:
        GQAToSlidingWindow().check(given, wanted, 13)
    assert caught.value.field == field
