"""Low-rank adapters: products and gradients of models with them are those of models with the sums in their place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caramba_plugins_standard.training import LoRA
from caramba_plugins_standard.training.compiling import compile_blocks
from caramba_plugins_standard.training.lora import AdaptedMatrix, adapt
from caramba_plugins_standard.training.planning import adapted_matrices
from torch import Tensor, nn
from torch.func import functional_call

from caramba_core.graph import Graph, local_name
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel
from caramba_core.nn.module import linear

from ..plan.shapes import ATTENTIONS, MLP, TOPOLOGIES, chain, graph_of, residual

SETTINGS = LoRA(rank=3, alpha=6.0)
GRAPHS = {
    **{name: graph_of(topology, tied=False) for name, topology in TOPOLOGIES.items()},
    **{f"attention_{name}": graph_of(chain(residual(config), residual(MLP))) for name, config in ATTENTIONS.items()},
}


def adapted(graph: Graph) -> tuple[LanguageModel, dict[str, AdaptedMatrix]]:
    """A model whose adapters add something to every matrix."""
    model = build(graph, seed=0).requires_grad_(False)
    places = adapt(model, adapted_matrices(graph, SETTINGS, frozenset()), SETTINGS, seed=1)
    generator = torch.Generator().manual_seed(2)
    for matrix in places.values():
        matrix.up.data = torch.randn(matrix.up.shape, generator=generator) * 0.1
    return model, places


@pytest.mark.parametrize("name", GRAPHS)
def test_outputs_and_gradients_are_those_of_the_sums(name: str) -> None:
    graph = GRAPHS[name]
    model, places = adapted(graph)
    tokens = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(3))
    y = model(tokens)
    y.square().sum().backward()

    plain = build(graph, seed=0).requires_grad_(False)
    factors = {key: (m.up.detach().requires_grad_(), m.down.detach().requires_grad_()) for key, m in places.items()}
    sums = {
        local_name(key): plain.get_parameter(local_name(key)) + 2.0 * (up @ down) for key, (up, down) in factors.items()
    }
    expected = functional_call(plain, sums, (tokens,))
    expected.square().sum().backward()
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    for key, (up, down) in factors.items():
        assert up.grad is not None
        torch.testing.assert_close(places[key].up.grad, up.grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(places[key].down.grad, down.grad, rtol=1e-3, atol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)

    stored = model.state_dict()
    assert stored.keys() == plain.state_dict().keys()
    for key, matrix in places.items():
        torch.testing.assert_close(stored[local_name(key)], sums[local_name(key)].detach())
        assert torch.equal(stored[local_name(key)], matrix.merged())


@pytest.mark.parametrize("name", ["nested", "attention_dba_null", "attention_gqa_norm_of_all"])
def test_compiled_blocks(name: str) -> None:
    tokens = torch.randint(0, 40, (2, 9))
    found = []
    for backend in (None, "aot_eager"):
        model, places = adapted(GRAPHS[name])
        if backend is not None:
            compile_blocks(model, backend=backend)
        model.hidden(tokens).square().sum().backward()
        found.append([part.grad for matrix in places.values() for part in (matrix.up, matrix.down)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_matrix_of_another_type(dtype: torch.dtype) -> None:
    matrix = AdaptedMatrix(nn.Parameter(torch.randn(5, 7).to(dtype), requires_grad=False), rank=2, scale=0.5)
    matrix.draw("key")
    matrix.up.data.normal_()
    x, bias = torch.randn(2, 3, 7).to(dtype), torch.randn(5).to(dtype)
    assert matrix.up.dtype is matrix.down.dtype is torch.promote_types(dtype, torch.float32)
    expected = x.double() @ (matrix.weight.double() + 0.5 * matrix.up.double() @ matrix.down.double()).T + bias.double()
    close: dict[str, Any] = {"rtol": 3e-2, "atol": 3e-2} if dtype is torch.bfloat16 else {}
    torch.testing.assert_close(linear(x, matrix, bias).double(), expected, **close)
    assert matrix.merged().dtype is dtype


def test_it_reads_as_the_sum() -> None:
    matrix = AdaptedMatrix(nn.Parameter(torch.randn(6, 4), requires_grad=False), rank=2, scale=1.0)
    matrix.draw("key")
    assert torch.equal(matrix.merged(), matrix.weight)  # it begins as the weight
    matrix.up.data.normal_()
    whole, x = matrix.merged(), torch.randn(3, 4)
    assert isinstance(whole, Tensor)
    assert torch.equal(matrix.view(2, 3, 4), whole.view(2, 3, 4))
    assert torch.equal(torch.einsum("bd,nd->bn", x, matrix), torch.einsum("bd,nd->bn", x, whole))
    assert torch.equal(torch.cat([matrix, whole]), torch.cat([whole, whole]))
    assert matrix.to(torch.float64).dtype is torch.float64
    assert matrix.shape == (6, 4)
    assert matrix.dtype is torch.float32
    assert 0 < float(matrix.down.detach().abs().max()) <= 0.5  # 1 / sqrt(4), as nn.Linear's
