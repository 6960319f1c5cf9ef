"""Tensors of which each process holds a part, as FSDP2 divides them; others are their own part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Shard, distribute_tensor

__all__ = ["divided_as", "gathered_stack", "own_part", "own_rows"]


def own_part(x: Tensor) -> Tensor:
    """This process's part of a tensor, in the same memory."""
    return x.to_local() if isinstance(x, DTensor) else x


def divided_as(whole: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, divided as another one of its shape."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def gathered_stack(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """Whole matrices ``[N, n, m]`` of this process's rows of each; all are divided as the matrix ``like``."""
    stack = torch.stack(list(parts))
    if not isinstance(like, DTensor):
        return stack
    shape = torch.Size((len(parts), *like.shape))
    stride = (like.numel(), like.shape[1], 1)
    return DTensor.from_local(stack, like.device_mesh, _behind(like), shape=shape, stride=stride).full_tensor()


def own_rows(whole: Tensor, like: Tensor) -> Tensor:
    """This process's rows ``[N, rows, m]`` of whole matrices that are divided as the matrix ``like``."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, _behind(like), src_data_rank=None).to_local()


def _behind(like: DTensor) -> list[Placement]:
    """The placements of a stack of tensors that are divided as ``like``: its axes come behind that of the stack."""
    return [Shard(each.dim + 1) if isinstance(each, Shard) else each for each in like.placements]
