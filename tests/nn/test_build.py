"""From graphs to modules: names, values, dtypes, devices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from caramba_plugins_standard.layers import Linear, RMSNorm
from caramba_plugins_standard.topologies import Nested, Recurrent, Residual, Stacked

from caramba_core.components import Layer
from caramba_core.nn.build import build, initialize
from caramba_core.nn.language_model import LanguageModel

Make = Callable[..., LanguageModel]


def test_parameters_are_named_after_their_nodes(llama: Make) -> None:
    model = llama(repeat=2, tied=False, qkv_bias=True)
    declared = [
        f"{name.removeprefix('model.')}.{weight}"
        for name, node in model.graph.nodes().items()
        for weight in node.config.weights(node.width_in)
    ]
    assert sorted(model.state_dict()) == sorted(declared)
    assert {"embedder.weight", "head.weight", "norm.weight", "blocks.1.attention.k_bias"} <= set(declared)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, node in model.graph.nodes().items():
        for weight, spec in node.config.weights(node.width_in).items():
            assert shapes[f"{name.removeprefix('model.')}.{weight}"] == spec.shape


def test_every_node_is_a_submodule_of_its_name(llama: Make) -> None:
    model = llama(repeat=2)
    for name in model.graph.nodes():
        assert model.get_submodule(name.removeprefix("model.")) is not None


def test_tied_head_owns_nothing_and_reads_the_embedder(llama: Make) -> None:
    model = llama()
    assert not list(model.head.parameters())
    assert model.head_weight is model.embedder.weight
    tokens = torch.randint(97, (2, 5))
    torch.testing.assert_close(model(tokens), model.hidden(tokens) @ model.embedder.weight.T)  # type: ignore[operator, union-attr]
    model(tokens).sum().backward()
    assert model.embedder.weight.grad is not None


def test_initial_values_depend_on_name_and_seed_alone(llama: Make) -> None:
    small, large = llama(repeat=1).state_dict(), llama(repeat=3).state_dict()
    for name, tensor in small.items():
        assert torch.equal(tensor, large[name]), name
    other = llama(repeat=1)
    initialize(other, 1)
    assert not torch.equal(other.state_dict()["blocks.0.mlp.up_proj"], small["blocks.0.mlp.up_proj"])
    assert torch.equal(other.state_dict()["norm.weight"], small["norm.weight"])
    values = [tensor.flatten()[:8] for name, tensor in large.items() if name.endswith("_proj")]
    assert len({tuple(v.tolist()) for v in values}) == len(values), "two tensors drew the same values"
    assert large["blocks.0.mlp.up_proj"].std() == pytest.approx(0.02, rel=0.1)


def test_the_same_values_in_every_dtype(llama: Make) -> None:
    wide, narrow = llama(), llama(dtype=torch.bfloat16)
    for name, tensor in wide.state_dict().items():
        assert torch.equal(narrow.state_dict()[name], tensor.to(torch.bfloat16))
    assert torch.get_default_dtype() == torch.float32


def test_meta_device_allocates_nothing(llama: Make) -> None:
    model = build(llama().graph, device="meta")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    empty = model.to_empty(device="cpu")
    initialize(empty, 0)
    tokens = torch.randint(97, (1, 4))
    torch.testing.assert_close(empty(tokens), llama(dtype=torch.float32)(tokens))


def test_inline_topologies_add_no_name_and_no_call(model_of: Make, block: Callable[..., tuple[Layer, ...]]) -> None:
    plain = model_of(Nested(name="blocks", repeat=1, layers=block()))
    wrapped = model_of(Stacked(layers=(Nested(name="blocks", repeat=1, layers=(Stacked(layers=block()),)),)))
    assert list(plain.state_dict()) == list(wrapped.state_dict())
    body = wrapped.get_submodule("blocks.0")
    assert body.wiring == plain.get_submodule("blocks.0").wiring
    tokens = torch.randint(97, (2, 5))
    assert torch.equal(plain(tokens), wrapped(tokens))


def test_inline_topologies_with_a_name_are_a_scope(model_of: Make) -> None:
    layers = (RMSNorm(), Linear(bias=True))
    model = model_of(Residual(name="first", layers=layers), Stacked(name="second", layers=layers), *layers)
    assert [name for name in model.state_dict() if name.endswith("weight")] == [
        "first.norm.weight",
        "first.linear.weight",
        "second.norm.weight",
        "second.linear.weight",
        "norm.weight",
        "linear.weight",
        "embedder.weight",
    ]
    tokens = torch.randint(97, (2, 5))
    x = model.embedder(tokens)
    first, second = model.get_submodule("first"), model.get_submodule("second")
    frame = None
    x = x + first.linear(first.norm(x, frame), frame)  # type: ignore[operator, union-attr]
    x = second.linear(second.norm(x, frame), frame)  # type: ignore[operator, union-attr]
    x = model.linear(model.norm(x, frame), frame)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(model(tokens), model.logits(x))


def test_one_module_for_all_applications(model_of: Make) -> None:
    model = model_of(Recurrent(times=4, layers=(Linear(),)))
    assert [name for name, _ in model.named_parameters()] == ["recurrent.body.linear.weight", "embedder.weight"]
