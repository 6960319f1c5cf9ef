"""Layers without a cache against their formulas: outputs, gradients, declared costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from caramba_plugins_standard.layer_modules import gated, rms_norm
from caramba_plugins_standard.layers import (
    Dropout,
    FeedForward,
    LayerNorm,
    Linear,
    LinearHead,
    Multiply,
    RMSNorm,
    SwiGLU,
    TokenEmbedder,
)
from caramba_plugins_testing import Case
from torch import Tensor, nn
from torch.nn import functional as F

from caramba_core.components import Layer, Shape
from caramba_core.errors import InvalidValue
from caramba_core.nn.build import initialize, load_object
from caramba_core.nn.frame import Frame
from caramba_core.nn.module import ComponentModule


def rms_reference(x: Tensor, w: dict[str, Tensor], eps: float, offset: float = 0.0) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * (offset + w["weight"])


def layer_norm_reference(x: Tensor, w: dict[str, Tensor], eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * w["weight"]
    return normed + w["bias"] if "bias" in w else normed


def linear_reference(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    y = torch.einsum("bti,oi->bto", x, w["weight"])
    return y + w["bias"] if "bias" in w else y


def swiglu_reference(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    gate, up = (torch.einsum("btd,fd->btf", x, w[f"{name}_proj"]) for name in ("gate", "up"))
    if "gate_bias" in w:
        gate, up = gate + w["gate_bias"], up + w["up_bias"]
    y = torch.einsum("btf,df->btd", gate / (1 + (-gate).exp()) * up, w["down_proj"])
    return y + w["down_bias"] if "down_bias" in w else y


def xielu_reference(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    """arXiv 2411.13010, equation 7, with the slopes behind a softplus."""
    rising, falling = w["xielu_p"].exp().log1p(), 0.5 + w["xielu_n"].exp().log1p()
    below = (torch.expm1(x.clamp(max=-1e-6)) - x) * falling + 0.5 * x
    return torch.where(x > 0, rising * x**2 + 0.5 * x, below)


ACTIVATIONS: dict[str, Callable[[Tensor, dict[str, Tensor]], Tensor]] = {
    "silu": lambda x, w: x / (1 + (-x).exp()),
    "gelu": lambda x, w: x / 2 * (1 + (x / math.sqrt(2)).erf()),
    "gelu_tanh": lambda x, w: x / 2 * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh()),
    "relu": lambda x, w: x.clamp(min=0),
    "relu2": lambda x, w: x.clamp(min=0) ** 2,
    "xielu": xielu_reference,
}


def feed_forward_reference(x: Tensor, w: dict[str, Tensor], activation: str) -> Tensor:
    up = linear_reference(x, {"weight": w["up_proj"], **({"bias": w["up_bias"]} if "up_bias" in w else {})})
    if "gate_proj" in w:
        gate = linear_reference(x, {"weight": w["gate_proj"], **({"bias": w["gate_bias"]} if "gate_bias" in w else {})})
        hidden = ACTIVATIONS[activation](gate, w) * up
    else:
        hidden = ACTIVATIONS[activation](up, w)
    return linear_reference(
        hidden, {"weight": w["down_proj"], **({"bias": w["down_bias"]} if "down_bias" in w else {})}
    )


LAYERS: dict[str, tuple[Layer, Callable[..., Tensor], tuple[Any, ...]]] = {
    "rms_norm": (RMSNorm(), rms_reference, (1e-5,)),
    "rms_norm, large eps": (RMSNorm(eps=0.1), rms_reference, (0.1,)),
    "rms_norm, weights around zero": (RMSNorm(offset=1.0), rms_reference, (1e-5, 1.0)),
    "layer_norm": (LayerNorm(), layer_norm_reference, (1e-5,)),
    "layer_norm without bias": (LayerNorm(bias=False, eps=1e-3), layer_norm_reference, (1e-3,)),
    "linear": (Linear(), linear_reference, ()),
    "linear to another width": (Linear(d_out=11, bias=True), linear_reference, ()),
    "swiglu": (SwiGLU(d_ff=13), swiglu_reference, ()),
    "swiglu with biases": (SwiGLU(d_ff=13, bias=True), swiglu_reference, ()),
    **{
        f"feed_forward {name}{'' if gated else ' without gate'}": (
            FeedForward(d_ff=13, activation=name, gated=gated, bias=name == "gelu"),  # type: ignore[arg-type]
            feed_forward_reference,
            (name,),
        )
        for name in ACTIVATIONS
        for gated in (True, False)
    },
    "multiply": (Multiply(by=0.22), lambda x, w: x * 0.22, ()),
}


def module_of(config: Layer, width: int, dtype: torch.dtype = torch.float64) -> ComponentModule:
    """A module whose values differ from their start, so that a bias or a scale left out shows."""
    module: ComponentModule = load_object(config.builds)(config, width).to(dtype)
    initialize(module, 0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def frame() -> Frame:
    return Frame(positions=torch.arange(1))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 7), (3, 5, 8)], ids=str)
def test_outputs_and_gradients_follow_the_formula(name: str, shape: tuple[int, int, int]) -> None:
    config, reference, extra = LAYERS[name]
    module = module_of(config, shape[-1])
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weights = dict(module.named_parameters())
    leaves = [x, *weights.values()]
    expected, found = reference(x, weights, *extra), module(x, frame())
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, leaves, gradient)
    got = torch.autograd.grad(found, leaves, gradient)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_what_stays_for_the_backward_pass_is_declared(name: str) -> None:
    config = LAYERS[name][0]
    module = module_of(config, 8)
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    assert saved_values(module, x) == config.cost(8, Shape(batch=2, tokens=5, context=5)).saved


def saved_values(module: nn.Module, x: Tensor) -> int:
    """Values that autograd keeps, each storage once, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _held = module(x, frame())
    return sum(kept.values())


@pytest.mark.components(
    *(
        Case(name=name.replace(" ", "_").replace(",", ""), config=config, width=16)
        for name, (config, *_) in LAYERS.items()
    ),
    Case(config=Dropout(p=0.0), width=16),
)
def test_the_kit(component_check: Callable[[], None]) -> None:
    component_check()


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 5, 6)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm_of_narrow_types_is_taken_in_float32(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = torch.randn(shape).to(dtype).requires_grad_(), torch.randn(6).to(dtype).requires_grad_()
    found, expected = rms_norm(x, weight, 1e-5), F.rms_norm(x, (6,), weight, 1e-5)
    assert found.dtype == dtype
    precision = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(found, expected, **precision)
    gradient = torch.randn(shape).to(dtype)
    got = torch.autograd.grad(found, (x, weight), gradient)
    wanted = torch.autograd.grad(expected, (x, weight), gradient)
    torch.testing.assert_close(got, wanted, **precision)


def test_rms_norm_refuses_second_derivatives() -> None:
    x, weight = torch.randn(2, 4, requires_grad=True), torch.ones(4, requires_grad=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        torch.autograd.grad(rms_norm(x, weight, 1e-5).sum(), x, create_graph=True)


def test_autocast_does_not_round_the_scale_of_a_norm() -> None:
    x, weight = torch.randn(3, 8).bfloat16().requires_grad_(), torch.randn(8).requires_grad_()
    wanted = rms_norm(x, weight, 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        found = rms_norm(x, weight, 1e-5)
    assert torch.equal(found, wanted)
    gradients = [torch.autograd.grad(each.float().square().sum(), (x, weight)) for each in (found, wanted)]
    assert all(map(torch.equal, *gradients))


def test_an_offset_of_weights_is_not_rounded_to_their_type() -> None:
    x, weight = torch.randn(2, 3, 64, dtype=torch.bfloat16), (torch.randn(64) * 1e-3).bfloat16()
    expected = rms_norm(x.float(), weight.float(), 1e-5, 1.0).bfloat16()
    assert torch.equal(rms_norm(x, weight, 1e-5, 1.0), expected)
    assert not torch.equal(rms_norm(x, 1 + weight, 1e-5), expected)


def test_gating_has_a_gradient_and_refuses_a_second() -> None:
    gate, up = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.testing.assert_close(gated(gate, up), gate * torch.sigmoid(gate) * up)
    assert torch.autograd.gradcheck(gated, (gate, up))
    (first,) = torch.autograd.grad(gated(gate, up).sum(), gate, create_graph=True)
    with pytest.raises(RuntimeError, match="not implemented"):
        first.sum().backward()


def test_dropout_scales_what_it_keeps_and_rests_in_evaluation() -> None:
    module = module_of(Dropout(p=0.25), 50)
    x = torch.ones(20, 50, 50, dtype=torch.float64)
    y = module(x, frame())
    assert set(y.unique().tolist()) == {0.0, 1 / 0.75}
    assert (y == 0).double().mean().item() == pytest.approx(0.25, abs=0.01)
    assert torch.equal(module.eval()(x, frame()), x)


def test_embedder_and_head() -> None:
    embedder, head = module_of(TokenEmbedder(vocab_size=9, d_model=4), 9), module_of(LinearHead(vocab_size=9), 4)
    tokens = torch.tensor([[1, 8, 0], [1, 1, 4]])
    x = embedder(tokens)
    assert torch.equal(x, embedder.weight[tokens])  # type: ignore[index]
    torch.testing.assert_close(head(x, head.weight), x @ head.weight.T)  # type: ignore[operator, union-attr]
    assert LinearHead(vocab_size=9, tied=True).weights(4) == {}
    shape = Shape(batch=2, tokens=3, context=3)
    assert LinearHead(vocab_size=9).cost(4, shape).operations == 2 * 6 * 4 * 9


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: RMSNorm(eps=0.0), "eps"),
        (lambda: Linear(d_out=0), "d_out"),
        (lambda: SwiGLU(d_ff=-1), "d_ff"),
        (lambda: Dropout(p=1.0), "p"),
        (lambda: Multiply(by=0.0), "by"),
        (lambda: FeedForward(d_ff=3, activation="tanh"), "activation"),  # type: ignore[arg-type]
        (lambda: TokenEmbedder(vocab_size=0, d_model=4), "vocab_size"),
        (lambda: Linear(init_std=0.0), "init_std"),
    ],
)
def test_values_out_of_range_are_refused(make: Callable[[], Layer], field: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        make()
    assert caught.value.field == field
