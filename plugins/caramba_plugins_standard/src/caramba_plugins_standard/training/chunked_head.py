"""Loss and gradient behind the head, a chunk of tokens at a time: all logits of a step would not fit.

Axes: N tokens, n tokens of a chunk, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from caramba_plugins_standard.training.batch import NO_TARGET

__all__ = ["backward_in_chunks", "linear_cross_entropy"]


def backward_in_chunks(hidden: Tensor, rows: int, loss: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """The sum of ``loss`` over chunks of ``rows`` rows of ``hidden`` ``[N, D]``, detached, after its backward pass.

    ``loss(part, where)`` runs the head on ``part`` ``[n, D]``, the rows ``where``.  It gets a detached copy, so that
    each chunk's logits are freed before the next chunk's exist; the layers' backward pass comes last, in one piece.
    """
    trains_below = hidden.requires_grad  # not where the head alone trains
    leaf = hidden.detach().requires_grad_(trains_below)
    losses = []
    for first in range(0, len(hidden), rows):
        where = slice(first, first + rows)
        part = loss(leaf[where], where)
        part.backward()
        losses.append(part.detach())
    if trains_below:
        hidden.backward(leaf.grad)
    return torch.stack(losses).sum()


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, *, rows: int, compiles: bool) -> Tensor:
    """``F.cross_entropy(hidden @ weight.T, targets, reduction="sum")`` with the logits of ``rows`` tokens at a time.

    ``hidden`` ``[N, D]``, ``weight`` ``[V, D]``, ``targets`` int64 ``[N]``.  Gradients are made on the way forward, as
    by ``F.linear_cross_entropy`` of torch 2.13.  Under autocast the weight is cast once, the products are of the
    narrow type, the loss and the sum of the weight's gradient are of float32.  ``compiles`` makes one kernel of what
    stands between the products.
    """
    device = hidden.device.type
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, rows, dtype, compiles)  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients wait for the backward pass, which multiplies them by the loss's own."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, rows: int, dtype: torch.dtype, compiles: bool
    ) -> Tensor:
        x, w = hidden.to(dtype), weight.to(dtype)
        to_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        middle = _compiled() if compiles else _loss_and_gradient
        losses = []
        with torch.autocast(x.device.type, enabled=False):
            for first in range(0, len(x), rows):
                where = slice(first, first + rows)
                loss, to_logits = middle(F.linear(x[where], w), targets[where])
                losses.append(loss)
                if to_x is not None:
                    torch.mm(to_logits, w, out=to_x[where])
                if to_weight is not None:
                    _add_product(to_weight, to_logits.t(), x[where])
        ctx.gradients = (None if to_x is None else to_x.to(hidden.dtype)), to_weight
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        for each in gradients:
            if each is not None:
                each.mul_(gradient)
        return *gradients, None, None, None, None


def _loss_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The summed cross entropy of ``[n, V]`` with int64 ``[n]``, and its gradient in the type of the logits.

    The logits may be overwritten.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    top = wide.amax(-1, keepdim=True)
    total = (wide - top).exp_().sum(-1, keepdim=True).log() + top
    learned = (targets != NO_TARGET).unsqueeze(-1)
    chosen = targets.clamp(min=0).unsqueeze(-1)
    loss = ((total - wide.gather(-1, chosen)) * learned).sum()
    if torch.compiler.is_compiling():  # one kernel, without the gradient of each chosen token written by itself
        index = torch.arange(wide.shape[-1], device=wide.device)
        return loss, (((wide - total).exp() - (index == chosen).to(wide.dtype)) * learned).to(logits.dtype)
    gradient = wide.sub_(total).exp_()
    gradient.scatter_add_(-1, chosen, gradient.new_full(chosen.shape, -1.0)).mul_(learned)
    return loss, gradient.to(logits.dtype)


@cache
def _compiled() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return torch.compile(_loss_and_gradient)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b``, in the type of ``total`` where the device has such a product of narrower ones."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif _adds_to_wider(total.device, total.dtype, a.dtype):
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.add_(a @ b)


@cache
def _adds_to_wider(device: torch.device, wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether ``torch.addmm`` takes narrow factors and a wide sum, in place: by trying it."""
    a, total = torch.ones(16, 16, device=device, dtype=narrow), torch.ones(16, 16, device=device, dtype=wide)
    try:
        torch.addmm(total, a, a, out_dtype=wide, out=total)
    except (RuntimeError, TypeError):
        return False
    return bool((total == 17).all())
