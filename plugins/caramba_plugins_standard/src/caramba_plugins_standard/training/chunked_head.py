"""Loss and gradient behind the head, a chunk of tokens at a time: all logits of a step would not fit.

Axes: N tokens, n tokens of a chunk, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caramba_core.nn.language_model import LanguageModel
from caramba_plugins_standard.layer_modules import LinearHeadModule
from caramba_plugins_standard.training.batch import NO_TARGET

__all__ = [
    "HeadLoss",
    "backward_behind_head",
    "cross_entropy_with_gradient",
    "linear_cross_entropy",
    "log_total",
]

HeadLoss: TypeAlias = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""``loss(logits, where)``: the sum over rows ``where``, and its gradient by their logits ``[n, V]``, in their type.

It may overwrite the logits.
"""


def backward_behind_head(
    model: LanguageModel,
    hidden: Tensor,
    loss: HeadLoss,
    *,
    rows: int,
    mean: Callable[[Tensor], Tensor],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Tensor:
    """``mean`` of the sum of ``loss`` over chunks of ``rows`` rows of ``hidden`` ``[N, D]``, detached, after its
    backward pass.

    Each chunk's logits are freed before the next chunk's exist; the layers' backward pass comes last, in one piece.
    """
    weight = model.head_weight
    if type(model.head) is LinearHeadModule and type(weight) is nn.Parameter:  # no distributed tensor
        with autocast():
            total = mean(_linear_loss(hidden, weight, loss, rows))
        total.backward()
        return total.detach()
    trains_below = hidden.requires_grad  # not where the head alone trains
    leaf = hidden.detach().requires_grad_(trains_below)
    factor, losses = mean(torch.ones((), device=hidden.device)), []
    for first in range(0, len(hidden), rows):
        where = slice(first, first + rows)
        with autocast():
            logits = model.logits(leaf[where])
        part, gradient = loss(logits.detach(), where)
        logits.backward(gradient * factor)
        losses.append(part)
    if trains_below:
        hidden.backward(leaf.grad)
    return torch.stack(losses).sum() * factor


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, *, rows: int, compiles: bool) -> Tensor:
    """``F.cross_entropy(hidden @ weight.T, targets, reduction="sum")`` with the logits of ``rows`` tokens at a time.

    ``hidden`` ``[N, D]``, ``weight`` ``[V, D]``, ``targets`` int64 ``[N]``.  Gradients are made on the way forward, as
    by ``F.linear_cross_entropy`` of torch 2.13.  Under autocast the weight is cast once, the products are of the
    narrow type, the loss and the sum of the weight's gradient are of float32.  ``compiles`` makes one kernel of what
    stands between the products.
    """
    middle = cross_entropy_with_gradient(compiles=compiles)
    return _linear_loss(hidden, weight, lambda logits, where: middle(logits, targets[where]), rows)


def cross_entropy_with_gradient(*, compiles: bool) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Of logits ``[n, V]`` and int64 ``[n]``: the summed cross entropy, and its gradient in the logits' type."""
    return _compiled() if compiles else _loss_and_gradient


def log_total(wide: Tensor) -> Tensor:
    """``logsumexp`` over the last axis, which stays, in a form that the compiler makes one loop of."""
    top = wide.amax(-1, keepdim=True)
    return (wide - top).exp().sum(-1, keepdim=True).log() + top


def _linear_loss(hidden: Tensor, weight: Tensor, loss: HeadLoss, rows: int) -> Tensor:
    device = hidden.device.type
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    total: Tensor = _LinearLoss.apply(hidden, weight, loss, rows, dtype)  # type: ignore[no-untyped-call]
    return total


class _LinearLoss(torch.autograd.Function):
    """Gradients wait for the backward pass, which multiplies them by the loss's own."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, loss: HeadLoss, rows: int, dtype: torch.dtype) -> Tensor:
        x, w = hidden.to(dtype), weight.to(dtype)
        to_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        losses = []
        with torch.autocast(x.device.type, enabled=False):
            for first in range(0, len(x), rows):
                where = slice(first, first + rows)
                part, to_logits = loss(F.linear(x[where], w), where)
                losses.append(part)
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
        return *gradients, None, None, None


def _loss_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = log_total(wide)
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
