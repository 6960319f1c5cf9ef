"""Products in 8-bit floats against those of float32."""

from __future__ import annotations

import pytest
import torch
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.layers import LinearHead, RMSNorm, SwiGLU, TokenEmbedder
from caramba_plugins_standard.pretrain import Pretrain
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.topologies import Nested, Residual, Stacked
from caramba_plugins_standard.training import Training
from caramba_plugins_standard.training.compiling import compile_blocks
from caramba_plugins_standard.training.float8 import Float8Products, use_float8
from caramba_plugins_standard.training.recomputing import recompute_activations
from torch import Tensor
from torch.nn import functional as F

from caramba_core.components import Model
from caramba_core.errors import InvalidValue
from caramba_core.lowering import lower
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel


def off(found: Tensor, wanted: Tensor) -> float:
    """The relative error."""
    return float(((found - wanted).norm() / wanted.norm()).detach())


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_a_product_and_its_gradients(size: float, biased: bool) -> None:
    x, weight = (size * torch.randn(2, 24, 32)).requires_grad_(), torch.randn(64, 32, requires_grad=True)
    bias = (size * torch.randn(64)).requires_grad_() if biased else None
    leaves = [leaf for leaf in (x, weight, bias) if leaf is not None]
    with torch.autocast("cpu", torch.bfloat16), Float8Products():
        found = F.linear(x, weight, bias)
    assert found.dtype == torch.bfloat16
    wanted, gradient = F.linear(x, weight, bias), torch.randn(found.shape)
    assert 0.01 < off(found, wanted) < 0.06
    got = torch.autograd.grad(found, leaves, gradient.bfloat16())
    for ours, expected in zip(got, torch.autograd.grad(wanted, leaves, gradient), strict=True):
        assert ours.dtype == torch.float32
        assert off(ours, expected) < 0.1


@pytest.mark.parametrize("shape", [(2, 24, 32, 60), (1, 7, 32, 64), (2, 24, 20, 64)], ids=str)
def test_other_sizes_and_passes_without_a_gradient_stay(shape: tuple[int, int, int, int]) -> None:
    batch, tokens, inputs, outputs = shape
    x, weight = torch.randn(batch, tokens, inputs), torch.randn(outputs, inputs, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = F.linear(x, weight)
        with Float8Products():
            assert torch.equal(F.linear(x, weight), wanted)
            fitting = torch.randn(16, 32), torch.randn(16, 32)
            with torch.no_grad():
                assert torch.equal(F.linear(*fitting), fitting[0].bfloat16() @ fitting[1].bfloat16().T)


def model(hidden: int = 48) -> LanguageModel:
    attention = GroupedQueryAttention(n_heads=4, n_kv_heads=2, head_dim=8, rope=Rope())
    block = (Residual(layers=(RMSNorm(), attention)), Residual(layers=(RMSNorm(), SwiGLU(d_ff=hidden))))
    layers = (Nested(name="blocks", repeat=2, layers=block), RMSNorm())
    embedder = TokenEmbedder(vocab_size=64, d_model=32, init_std=1.0)
    return build(lower(Model(embedder=embedder, topology=Stacked(layers=layers), head=LinearHead())), seed=0)


def gradients(built: LanguageModel) -> dict[str, Tensor]:
    tokens = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(built(tokens).float().flatten(0, 1), tokens.flatten())
    named = dict(built.named_parameters())
    return {"loss": loss.detach(), **dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))}


def test_layers_of_a_model_compiled_and_with_activations_computed_again() -> None:
    torch._dynamo.reset()
    wanted, narrow, again, compiled = (model() for _ in range(4))
    for each in (narrow, again, compiled):
        use_float8(each)
    recompute_activations(again, ("mlp",))
    compile_blocks(compiled, backend="aot_eager")
    exact, found = gradients(wanted), gradients(narrow)
    assert all(0 < off(found[name], exact[name]) < 0.25 for name in exact), "more than in one product"
    for name, value in gradients(again).items():
        assert torch.equal(value, found[name])
    assert all(off(value, found[name]) < 0.15 for name, value in gradients(compiled).items())


def test_matrices_whose_sizes_do_not_fit_are_named() -> None:
    assert use_float8(model()) == []
    left = use_float8(model(hidden=40))
    assert [name.rpartition(".")[0] for name in left] == ["blocks.0.mlp"] * 3 + ["blocks.1.mlp"] * 3


def test_without_autocast_it_is_refused() -> None:
    with pytest.raises(InvalidValue, match="with dtype: float32 it does nothing"):
        Training(strategy=Pretrain(), lr=1e-3, float8=True)
