"""Turning queries and keys by their positions.

Axes: B batch, H heads, G groups of heads with frequencies of their own, T tokens, P pairs, d = 2P.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from caramba_plugins_standard.rope import Rope

__all__ = ["Rotary", "cos_sin", "mean_rotation", "rotate", "rotate_reference"]


def cos_sin(frequencies: Tensor, positions: Tensor, *, scaling: float = 1.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of ``position * frequency``, in the (wide) type of the frequencies.

    ``frequencies`` ``[P]`` or ``[G, P]`` in float32 or float64; ``positions`` int64 ``[T]`` or ``[B, T]``.  The result
    is ``[1 or G, T, P]`` or ``[B, 1 or G, T, P]``: it broadcasts to ``[B, H, T, P]``.  ``scaling`` multiplies both.
    """
    assert frequencies.dtype in (torch.float32, torch.float64), "positions in half precision lose the order of tokens"
    angles = positions[..., None, :, None].to(frequencies.dtype) * frequencies[..., None, :]
    cos, sin = angles.cos(), angles.sin()
    if torch.compiler.is_compiling() and (frequencies.dim() == 2 or positions.shape[-1] > 1):
        # views by strides are of memory: the compiler stores both, where each element of a head would compute its own
        cos, sin = (each.as_strided(each.size(), each.stride()) for each in (cos, sin))
    return (cos, sin) if scaling == 1.0 else (cos * scaling, sin * scaling)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs ``(p, p + P)`` of ``x`` ``[B, H, T, 2P]``; ``cos`` and ``sin`` broadcast to ``[B, H, T, P]``.

    Computes in the type of ``cos`` and returns the type of ``x``.  No gradient flows to the angles.
    """
    if torch.compiler.is_compiling():  # the compiler makes one kernel of the formula
        return rotate_reference(x, cos, sin)
    if not torch.is_grad_enabled():
        return _turned(x, cos, sin)
    turned: Tensor = _Turn.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return turned


def rotate_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """What :func:`rotate` computes, spelled out."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def mean_rotation(attention: Tensor, frequencies: Tensor) -> Tensor:
    """``E[exp(-i theta_p (t - s))]`` over each head's attention by distance ``[H, T]``: complex128 ``[H, P]``."""
    angle = -torch.arange(attention.shape[-1], dtype=torch.float64)[:, None] * frequencies.double()
    return attention.to(torch.complex128) @ torch.polar(torch.ones_like(angle), angle)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The formula without temporaries, in the memory layout of ``x``: on a CPU half its time."""
    turned = torch.empty_like(x, dtype=cos.dtype)
    (first, second), (to_first, to_second) = x.chunk(2, dim=-1), turned.chunk(2, dim=-1)
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin)
    return turned.to(x.dtype)


class _Turn(torch.autograd.Function):
    """:func:`_turned`; its gradient is the turn back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _Turn.apply(gradient, cos, -sin), None, None  # type: ignore[no-untyped-call]


class Rotary(nn.Module):
    """The frequencies of a :class:`~caramba_plugins_standard.rope.Rope` on a device.

    They are not part of a checkpoint, and casting the model to a narrower type leaves them in float32: rounded to
    bfloat16 they would be off by whole turns after a few hundred tokens.
    """

    frequencies: Tensor

    def __init__(self, rope: Rope, head_dim: int) -> None:
        super().__init__()
        self.rope = rope
        self.head_dim = head_dim
        self.scaling = rope.attention_scaling
        self.register_buffer("frequencies", None, persistent=False)
        self._fill(torch.empty(0))

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """``cos`` and ``sin`` for int64 positions ``[T]`` or ``[B, T]``, as of :func:`cos_sin`."""
        frequencies = self.frequencies
        if self.rope.scaling == "dynamic":
            frequencies = self._stretched(positions)
        return cos_sin(frequencies, positions, scaling=self.scaling)

    def _stretched(self, positions: Tensor) -> Tensor:
        """Dynamic scaling for the longest position of this pass, without leaving the device."""
        factor, original = self.rope.factor, self.rope.original_max_position_embeddings
        assert factor is not None
        assert original is not None
        context = (positions.max() + 1).clamp(min=original).to(self.frequencies.dtype)
        stretch = factor * context / original - (factor - 1)
        pair = torch.arange(len(self.frequencies), device=positions.device, dtype=self.frequencies.dtype)
        return self.frequencies * stretch ** (-2 * pair / ((self.rope.rotated or self.head_dim) - 2))

    def _fill(self, like: Tensor) -> None:
        """Write the frequencies anew on the device of ``like``."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self.frequencies = torch.tensor(self.rope.frequencies(self.head_dim), dtype=dtype, device=like.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._fill(self.frequencies)
        return self

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"theta={self.rope.theta:g}, scaling={self.rope.scaling}, pairs={self.head_dim // 2}"
