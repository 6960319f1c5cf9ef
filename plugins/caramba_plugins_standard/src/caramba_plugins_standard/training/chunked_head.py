"""Loss and gradient behind the head, a chunk of tokens at a time: all logits of a step would not fit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["backward_in_chunks"]


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
