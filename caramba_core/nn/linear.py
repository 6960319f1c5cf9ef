"""``F.linear``, taken another way where a decode step on a CPU would wait for it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["linear"]

_FEW_ROWS = 4
"""Up to so many rows, reading the weights is all that a product costs."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` as ``F.linear`` computes it: ``[..., D]`` times ``[n, D]`` is ``[..., n]``.

    A few float32 rows on a CPU, without a gradient, go through the weights as a batch of two halves: torch's
    matrix-vector product reads them on one thread, its batched product on several (torch 2.13 with MKL on two cores of
    an AMD EPYC: 11 and 33 GB/s).
    """
    if (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() <= _FEW_ROWS * x.shape[-1]
        and not torch.is_grad_enabled()
        and x.numel()
        and weight.is_contiguous()
        and len(weight) % 2 == 0
        and not torch.compiler.is_compiling()
    ):
        columns = x.reshape(1, -1, x.shape[-1]).transpose(1, 2)
        halves = torch.bmm(weight.view(2, -1, x.shape[-1]), columns.expand(2, -1, -1))
        y = halves.view(len(weight), -1).t().reshape(*x.shape[:-1], len(weight))
        return y if bias is None else y + bias
    return F.linear(x, weight, bias)
