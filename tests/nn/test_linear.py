"""``linear`` computes what ``F.linear`` does, whichever way it takes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from caramba_core.nn.module import linear


@pytest.mark.parametrize("shape", [(24,), (1, 24), (1, 1, 24), (3, 24), (3, 1, 24), (2, 2, 24), (1, 5, 24), (0, 24)])
@pytest.mark.parametrize("outputs", [1, 6, 7])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_outputs(shape: tuple[int, ...], outputs: int, biased: bool, dtype: torch.dtype) -> None:
    x, weight = torch.randn(shape, dtype=dtype), torch.randn(outputs, 24, dtype=dtype)
    bias = torch.randn(outputs, dtype=dtype) if biased else None
    with torch.no_grad():
        found = linear(x, weight, bias)
    torch.testing.assert_close(found, F.linear(x, weight, bias))


def test_whatever_lies_in_memory() -> None:
    x, weight = torch.randn(24, 2).T, torch.randn(24, 6).T
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight), F.linear(x, weight))
        torch.testing.assert_close(linear(x, weight.contiguous()), F.linear(x, weight))


def test_gradients() -> None:
    x, weight = torch.randn(1, 24, requires_grad=True), torch.randn(6, 24, requires_grad=True)
    found = torch.autograd.grad(linear(x, weight).square().sum(), (x, weight))
    expected = torch.autograd.grad(F.linear(x, weight).square().sum(), (x, weight))
    torch.testing.assert_close(found, expected)
