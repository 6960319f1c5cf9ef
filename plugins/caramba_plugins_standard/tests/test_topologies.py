"""Every topology against its meaning, written out over the same modules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from caramba_plugins_standard.fans import Branching, Parallel, SoftmaxRouter, TopKRouter
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.layers import Linear, LinearHead, RMSNorm, SwiGLU, TokenEmbedder
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.topologies import Cyclic, Nested, Recurrent, Residual, Stacked
from caramba_plugins_testing import Case
from torch import Tensor, nn
from torch.nn import functional as F

from caramba_core.components import Layer, Model, Shape, Topology
from caramba_core.errors import Faults, InvalidValue
from caramba_core.lowering import lower
from caramba_core.nn.build import build
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel

WIDTH, HIDDEN = 12, 7


def attention(**changes: object) -> GroupedQueryAttention:
    return GroupedQueryAttention(**{"n_heads": 2, "n_kv_heads": 1, "head_dim": 4, "rope": Rope(), **changes})  # type: ignore[arg-type]


def mlp() -> SwiGLU:
    return SwiGLU(d_ff=HIDDEN, init_std=0.3)


def pair() -> Stacked:
    return Stacked(layers=(RMSNorm(), mlp()))


def model_of(*layers: Layer) -> LanguageModel:
    model = Model(
        head=LinearHead(),
        embedder=TokenEmbedder(vocab_size=31, d_model=WIDTH, init_std=1.0),
        topology=Stacked(layers=tuple(layers)),
    )
    return build(lower(model), dtype=torch.float64, seed=0)


def check(layer: Layer, meaning: Callable[[Callable[[str], Callable[[Tensor], Tensor]], Tensor], Tensor]) -> None:
    """Outputs and gradients of a layer are those of its meaning; ``meaning(at, x)`` calls submodules by name."""
    model = model_of(layer)
    tokens = torch.randint(31, (2, 5))
    frame = Frame.of(tokens)

    def at(name: str) -> Callable[[Tensor], Tensor]:
        module: nn.Module = model.get_submodule(name)
        return lambda x: module(x, frame)  # type: ignore[no-any-return]

    found, expected = model.hidden(tokens), meaning(at, model.embedder(tokens))
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(expected)
    leaves = [p for name, p in model.named_parameters() if not name.startswith("head")]
    got = torch.autograd.grad(found, leaves, gradient)
    wanted = torch.autograd.grad(expected, leaves, gradient)
    torch.testing.assert_close(got, wanted)
    assert all(bool(part.any()) for part in got), "a parameter without influence"


def test_residual_adds_its_input() -> None:
    check(Residual(layers=(RMSNorm(), mlp())), lambda at, x: x + at("mlp")(at("norm")(x)))


def test_nested_repeats_with_weights_of_its_own() -> None:
    def meaning(at: Callable[[str], Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
        for index in range(3):
            x = at(f"stage.{index}.mlp")(at(f"stage.{index}.norm")(x))
        return x

    check(Nested(name="stage", repeat=3, layers=(RMSNorm(), mlp())), meaning)


def test_parallel_sums() -> None:
    check(
        Parallel(layers=(attention(), mlp(), pair())),
        lambda at, x: (
            at("parallel.0.attention")(x) + at("parallel.1.mlp")(x) + at("parallel.2.mlp")(at("parallel.2.norm")(x))
        ),
    )


def test_parallel_means() -> None:
    check(
        Parallel(layers=(mlp(), attention()), combine="mean"),
        lambda at, x: (at("parallel.0.mlp")(x) + at("parallel.1.attention")(x)) / 2,
    )


@pytest.mark.parametrize("d_out", [None, 5])
def test_parallel_concatenates_features(d_out: int | None) -> None:
    layer = Parallel(layers=(Linear(d_out=3), mlp()), combine="concatenate", d_out=d_out, init_std=0.3)
    assert layer.weights(WIDTH)["out_proj"].shape == (d_out or WIDTH, 3 + WIDTH)
    model = model_of(layer)
    tokens = torch.randint(31, (2, 5))
    x, frame = model.embedder(tokens), Frame.of(tokens)
    node = model.get_submodule("parallel")
    parts = [model.get_submodule(name)(x, frame) for name in ("parallel.0.linear", "parallel.1.mlp")]
    expected = torch.einsum("bti,oi->bto", torch.cat(parts, dim=-1), node.out_proj)  # type: ignore[arg-type]
    torch.testing.assert_close(model.hidden(tokens), expected)
    assert expected.shape == (2, 5, d_out or WIDTH)


def test_branching_weighs_every_branch() -> None:
    layer = Branching(layers=(mlp(), attention(), mlp()), router=SoftmaxRouter(init_std=1.0))
    model = model_of(layer)
    tokens = torch.randint(31, (2, 5))
    x, frame = model.embedder(tokens), Frame.of(tokens)
    names = ("branching.0.mlp", "branching.1.attention", "branching.2.mlp")
    weights = F.softmax(x @ model.get_submodule("branching").router_weight.T, dim=-1)  # type: ignore[operator, union-attr]
    expected = torch.zeros_like(x)
    for index, name in enumerate(names):
        expected = expected + weights[..., index : index + 1] * model.get_submodule(name)(x, frame)
    torch.testing.assert_close(model.hidden(tokens), expected)
    model.hidden(tokens).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if not n.startswith("head"))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_branching_chooses_k_branches_a_token(k: int) -> None:
    model = model_of(Branching(layers=(mlp(), mlp(), mlp()), router=TopKRouter(k=k, init_std=1.0)))
    tokens = torch.randint(31, (2, 5))
    x, frame = model.embedder(tokens), Frame.of(tokens)
    node = model.get_submodule("branching")
    scores = x @ node.router_weight.T  # type: ignore[operator, union-attr]
    outputs = torch.stack([model.get_submodule(f"branching.{index}.mlp")(x, frame) for index in range(3)], dim=2)
    expected = torch.zeros_like(x)
    for b in range(2):
        for t in range(5):
            chosen = scores[b, t].topk(k).indices
            shares = F.softmax(scores[b, t, chosen], dim=-1)
            expected[b, t] = (shares[:, None] * outputs[b, t, chosen]).sum(0)
    torch.testing.assert_close(model.hidden(tokens), expected)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("inject", [False, True])
def test_recurrent_applies_one_body_again(times: int, inject: bool) -> None:
    def meaning(at: Callable[[str], Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
        state = x
        for application in range(times):
            given = state + x if inject and application else state
            state = at("recurrent.body.mlp")(at("recurrent.body.norm")(given))
        return state

    check(Recurrent(times=times, inject=inject, layers=(RMSNorm(), mlp())), meaning)


def test_cyclic_rotates() -> None:
    def meaning(at: Callable[[str], Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
        for index in (0, 1, 2, 0, 1):
            x = x + at(f"cyclic.{index}.mlp")(x)
        return x

    check(Cyclic(times=5, layers=tuple(Residual(layers=(mlp(),)) for _ in range(3))), meaning)


# ------------------------------------------------------------------------------------------------ what is declared


@pytest.mark.components(
    Case(name="nested", config=Nested(repeat=2, layers=(Residual(layers=(RMSNorm(), mlp())),))),
    Case(name="parallel_sum", config=Parallel(layers=(Linear(d_out=9), pair(), attention()), combine="sum"), width=9),
    Case(name="parallel_mean", config=Parallel(layers=(mlp(), mlp()), combine="mean")),
    Case(name="parallel_concatenate", config=Parallel(layers=(Linear(d_out=5), mlp()), combine="concatenate", d_out=9)),
    Case(name="branching_softmax", config=Branching(layers=(mlp(), attention()), router=SoftmaxRouter())),
    Case(name="branching_top_k", config=Branching(layers=(mlp(), mlp(), mlp()), router=TopKRouter(k=2))),
    Case(name="recurrent", config=Recurrent(times=3, inject=True, layers=(RMSNorm(), attention(), mlp()))),
    Case(name="cyclic", config=Cyclic(times=5, layers=(Residual(layers=(pair(),)), Residual(layers=(attention(),))))),
)
def test_the_kit(component_check: Callable[[], None]) -> None:
    component_check()


@pytest.mark.parametrize(
    "layer",
    [
        Parallel(layers=(Linear(d_out=5), Linear(d_out=4)), combine="concatenate"),
        Parallel(layers=(Linear(), Linear()), combine="mean"),
        Branching(layers=(Linear(), Linear()), router=SoftmaxRouter()),
    ],
    ids=["concatenate", "mean", "branching"],
)
def test_what_stays_for_the_backward_pass_is_declared(layer: Topology) -> None:
    """The branches' input is kept once, though every linear declares it."""
    model = model_of(layer)
    (node,) = [node for node in model.graph.nodes().values() if node.config == layer]
    module = model.get_submodule(node.name.removeprefix("model."))
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64, requires_grad=True)
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes() // 8
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _held = module(x, Frame(positions=torch.arange(5)))
    inputs = 2 if isinstance(layer, Branching) else 1  # the router reads it too
    declared = layer.cost(WIDTH, Shape(batch=2, tokens=5, context=5)).saved
    assert sum(kept.values()) == declared + x.numel() * (2 - inputs)


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "layer",
    [
        Residual(layers=(Linear(d_out=5),)),
        Recurrent(times=2, layers=(Linear(d_out=5),)),
        Cyclic(times=2, layers=(Linear(), Linear(d_out=5))),
        Parallel(layers=(Linear(), Linear(d_out=5))),
        Branching(layers=(Linear(), Linear(d_out=5)), router=SoftmaxRouter()),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_widths_that_do_not_meet_are_refused(layer: Layer) -> None:
    with pytest.raises(Faults, match="5"):
        model_of(layer)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Stacked(layers=()), "layers"),
        (lambda: Residual(layers=()), "layers"),
        (lambda: Nested(layers=()), "layers"),
        (lambda: Parallel(layers=()), "layers"),
        (lambda: Nested(layers=(mlp(),), repeat=0), "repeat"),
        (lambda: Recurrent(layers=(mlp(),), times=0), "times"),
        (lambda: Cyclic(layers=(mlp(), mlp(), mlp()), times=2), "times"),
        (lambda: Parallel(layers=(mlp(),), combine="product"), "combine"),  # type: ignore[arg-type]
        (lambda: Parallel(layers=(mlp(),), d_out=3), "d_out"),
        (lambda: Branching(layers=(mlp(), mlp()), router=TopKRouter(k=3)), "router"),
    ],
)
def test_values_that_do_not_fit_are_refused(make: Callable[[], Layer], field: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        make()
    assert caught.value.field == field
