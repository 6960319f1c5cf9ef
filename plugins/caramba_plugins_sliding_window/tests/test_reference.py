"""The fused passes against the plain reference: outputs and all gradients, over odd shapes, in float64."""

from __future__ import annotations

import pytest
import torch
from caramba_plugins_sliding_window.attention import SlidingWindowAttention
from caramba_plugins_sliding_window.module import SlidingWindowModule
from caramba_plugins_standard.rope import Rope
from sliding_window_reference import mixed

from caramba_core.nn.frame import Frame

YARN = Rope(theta=100.0, scaling="yarn", factor=8.0, original_max_position_embeddings=32)
ROPE = Rope(theta=100.0)


def built(**options: object) -> SlidingWindowModule:
    config = SlidingWindowAttention(**options)  # type: ignore[arg-type]
    module = SlidingWindowModule(config, 13).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
    return module


@pytest.mark.parametrize(
    ("tokens", "window", "sinks"),
    [(1, 3, 2), (5, 3, 2), (6, 3, 2), (17, 3, 2), (17, 1, 0), (17, 4, 0), (11, 1, 7), (9, 40, 3)],
)
@pytest.mark.parametrize("heads", [(4, 2, 6), (3, 1, 4), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("positions", ["text", "cache"])
def test_outputs_and_gradients(
    tokens: int, window: int, sinks: int, heads: tuple[int, int, int], positions: str
) -> None:
    n_heads, n_kv_heads, head_dim = heads
    module = built(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        window=window,
        sinks=sinks,
        rope=YARN if n_kv_heads == 1 else ROPE,
        sink_positions=positions,
        qkv_bias=n_heads == 4,
        qk_norm_eps=1e-5 if n_heads == 3 else None,
    )
    x = torch.randn(2, tokens, 13, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    weights = dict(module.named_parameters())
    found = module.mix(x, Frame(positions=torch.arange(tokens)))
    wanted = mixed(module.config, weights, x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    inputs = (x, *(weight for name, weight in weights.items() if not name.startswith("o_")))
    ours, theirs = (torch.autograd.grad(y, inputs, direction) for y in (found, wanted))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_true_and_near_sinks_differ_only_behind_the_cache() -> None:
    sizes = {"n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "window": 5, "sinks": 2, "rope": ROPE}
    text, cache = built(**sizes, sink_positions="text"), built(**sizes, sink_positions="cache")
    x = torch.randn(1, 20, 13, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    frame = Frame(positions=torch.arange(20))
    difference = (text(x, frame) - cache(x, frame)).abs().amax(dim=(0, 2))
    assert difference[:7].max() < 1e-12
    assert difference[7:].min() > 1e-6
