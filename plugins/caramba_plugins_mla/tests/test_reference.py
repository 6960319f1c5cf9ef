"""The fused pass against the plain reference: outputs and all gradients, over odd shapes, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caramba_plugins_mla.attention import MultiHeadLatentAttention
from caramba_plugins_mla.module import MultiHeadLatentModule
from caramba_plugins_standard.rope import Rope
from mla_reference import mixed

from caramba_core.nn.frame import Frame

ROPES = {
    "plain": Rope(theta=100.0),
    "yarn": Rope(theta=100.0, scaling="yarn", factor=8.0, original_max_position_embeddings=32),
}


@pytest.mark.parametrize("tokens", [1, 2, 7, 19])
@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize(
    "sizes",
    [
        {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "rank": 5, "rope_dim": 4},
        {"n_heads": 3, "head_dim": 4, "rank": 11, "rope_dim": 10, "q_bias": True, "k_bias": True, "scale": 0.3},
        {"n_heads": 2, "n_kv_heads": 1, "head_dim": 2, "rank": 1, "rope_dim": 2, "latent_norm_eps": 1e-3},
        {"n_heads": 5, "head_dim": 3, "rank": 7, "rope_dim": 0},
    ],
    ids=["grouped", "biases", "norm", "no_rope"],
)
def test_outputs_and_gradients(tokens: int, rope: str, sizes: dict[str, Any]) -> None:
    config = MultiHeadLatentAttention(**sizes, rope=ROPES[rope])
    module = MultiHeadLatentModule(config, 13).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
        if config.pairs:
            module.pairs.copy_(torch.randint(config.head_dim // 2, (config.pairs,), generator=generator))
    x = torch.randn(2, tokens, 13, generator=generator, dtype=torch.float64).requires_grad_()
    found = module.mix(x, Frame(positions=torch.arange(tokens)))
    wanted = mixed(config, module.state_dict(keep_vars=True), x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)
    rows = torch.arange(tokens)
    shares = module.probabilities(x, rows, rows)
    value = module._expanded(module._projected(x, rows)[2], None)[1]
    told = shares @ value.repeat_interleave(config.n_heads // config.n_kv_heads, dim=1)
    torch.testing.assert_close(told.transpose(1, 2).flatten(2), wanted, rtol=0, atol=1e-11)
    direction = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    inputs = (x, *(weight for name, weight in module.named_parameters() if not name.startswith("o_")))
    ours, theirs = (torch.autograd.grad(y, inputs, direction) for y in (found, wanted))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
