"""What an attention tells of itself, so that others can start from it: its module's ``probe(x, frame)``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Probe"]


@dataclass(frozen=True, slots=True)
class Probe:
    """What an attention did with one batch, in float32.

    ``x`` ``[B, T, D]``; ``query`` ``[B, H, T, d]`` and ``key`` ``[B, G, T, d]`` before rotation; ``value``
    ``[B, G, T, d]``; ``probabilities`` ``[B, H, T, T]`` after the softmax (row t, column s, zero beyond t);
    ``mixed`` ``[B, T, H * d]`` what the output projection reads; ``output`` ``[B, T, D]``; ``positions`` ``[T]``.
    """

    x: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    probabilities: Tensor
    mixed: Tensor
    output: Tensor
    positions: Tensor
