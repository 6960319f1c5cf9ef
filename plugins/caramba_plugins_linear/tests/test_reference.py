"""The parallel forms against the plain reference: outputs and all gradients, over odd shapes, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caramba_plugins_linear.attention import LinearAttention
from caramba_plugins_linear.far import linear_attention
from caramba_plugins_linear.module import LinearAttentionModule
from caramba_plugins_standard.rope import Rope
from linear_reference import mixed

from caramba_core.nn.frame import Frame

ROPES = {
    "plain": Rope(theta=100.0),
    "yarn": Rope(theta=100.0, scaling="yarn", factor=8.0, original_max_position_embeddings=32),
}


def built(config: LinearAttention) -> LinearAttentionModule:
    module = LinearAttentionModule(config, 13).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
    return module


@pytest.mark.parametrize(
    ("tokens", "window", "sinks"),
    [
        (1, 3, 2),
        (5, 3, 2),
        (19, 3, 2),
        (19, 0, 0),
        (19, 0, 3),
        (19, 5, 0),
        (11, 1, 7),
        (9, 40, 3),
        (70, 2, 1),
        (71, 0, 0),
    ],
)
@pytest.mark.parametrize(
    "sizes",
    [
        {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "features": 5, "rope": ROPES["plain"]},
        {"n_heads": 3, "n_kv_heads": 1, "head_dim": 2, "features": 1, "rope": ROPES["yarn"], "qkv_bias": True},
        {"n_heads": 2, "n_kv_heads": 2, "head_dim": 3, "features": 7, "scale": 0.9, "qk_norm_eps": 1e-5},
    ],
    ids=["grouped", "yarn", "no_rope"],
)
def test_outputs_and_gradients(tokens: int, window: int, sinks: int, sizes: dict[str, Any]) -> None:
    module = built(LinearAttention(**sizes, window=window, sinks=sinks))
    x = torch.randn(2, tokens, 13, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    found = module.mix(x, Frame(positions=torch.arange(tokens)))
    weights = dict(module.named_parameters())
    wanted = mixed(module.config, weights, x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    inputs = (x, *(weight for name, weight in weights.items() if not name.startswith("o_")))
    ours = torch.autograd.grad(found, inputs, direction)
    theirs = torch.autograd.grad(wanted, inputs, direction, allow_unused=True, materialize_grads=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("tokens", [1, 5, 64, 65, 150])
@pytest.mark.parametrize("carried", [False, True], ids=["fresh", "carried"])
def test_chunks_are_a_recurrence(tokens: int, carried: bool) -> None:
    """Outputs, state and gradients of the chunked form against one token after the other."""
    generator = torch.Generator().manual_seed(4)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    query, key, value = drawn(2, 3, 2, tokens, 5), drawn(2, 3, tokens, 5), drawn(2, 3, tokens, 4)
    start = drawn(2, 3, 5, 4) if carried else None
    found, end = linear_attention(query, key, value, start)
    state = torch.zeros(2, 3, 5, 4, dtype=torch.float64) if start is None else start
    steps = []
    for t in range(tokens):
        state = state + key[:, :, t, :, None] * value[:, :, t, None, :]
        steps.append(torch.einsum("bgmf,bgfe->bgme", query[:, :, :, t], state))
    wanted = torch.stack(steps, dim=3)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(end, state, rtol=0, atol=1e-10)
    inputs = [x for x in (query, key, value, start) if x is not None]
    weight = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad((found * weight).sum() + end.square().sum(), inputs),
        torch.autograd.grad((wanted * weight).sum() + state.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_far_features_of_any_size_are_finite() -> None:
    """Logarithms of features far above and below the exact scores neither overflow nor divide by zero."""
    module = built(LinearAttention(n_heads=2, n_kv_heads=1, head_dim=4, features=3, window=2, sinks=1)).float()
    x = torch.randn(1, 30, 13, generator=torch.Generator().manual_seed(5))
    for size in (-1e4, 1e4):
        with torch.no_grad():
            module.q_map_bias.fill_(size)
        y = module(x, Frame(positions=torch.arange(30)))
        y.sum().backward()
        assert bool(y.isfinite().all())
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
