"""In which order checkpoints have the rows of queries and keys within a head (light).

Here pairs stand half a head apart, those that turn first (:class:`~caramba_plugins_standard.rope.Rope`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["IN_HEADS", "head_order", "inverse", "rows_in_order"]

IN_HEADS: Final = tuple(f"attention.{part}_{what}" for part in "qk" for what in ("proj", "bias", "norm"))
"""Endings of parameters that have one row per dimension of a rotated head."""


def head_order(head_dim: int, rotated: int, *, adjacent: bool) -> tuple[int, ...] | None:
    """Where a checkpoint has each dimension of a head, in the order here; ``None`` if it is the same.

    In the checkpoint the first ``rotated`` dimensions turn, in pairs side by side or half of them apart.
    """
    turning, still = rotated // 2, (head_dim - rotated) // 2
    firsts = range(0, rotated, 2) if adjacent else range(turning)
    seconds = range(1, rotated, 2) if adjacent else range(turning, rotated)
    rest = range(rotated, head_dim)
    order = (*firsts, *rest[:still], *seconds, *rest[still:])
    return None if order == tuple(range(head_dim)) else order


def inverse(order: Sequence[int]) -> tuple[int, ...]:
    """The order that undoes one."""
    return tuple(sorted(range(len(order)), key=lambda place: order[place]))


def rows_in_order(values: Tensor, order: Sequence[int]) -> Tensor:
    """Rows ``[heads * d]`` or ``[heads * d, D]`` with those of each head taken in another order."""
    return values.view(-1, len(order), *values.shape[1:])[:, list(order)].reshape(values.shape)
