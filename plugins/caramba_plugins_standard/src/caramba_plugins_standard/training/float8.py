"""Products of training in 8-bit floats.

Axes: N tokens, D inputs, n outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from caramba_core.nn.language_model import LanguageModel
from caramba_core.nn.module import ComponentModule

__all__ = ["Float8Products", "float8_linear", "use_float8"]

_VALUES, _GRADIENTS = torch.float8_e4m3fn, torch.float8_e5m2
_MULTIPLE: Final = 16
"""Of every size, which the kernels need; other products stay as they are."""


def use_float8(model: LanguageModel) -> list[str]:
    """Let a model's layers multiply in 8 bits where a gradient is wanted; embedder and head do not.

    Under autocast alone: weights stay what they are, and the results of products are of autocast's type.  The names of
    matrices whose sizes are no multiples of 16 are returned: their products stay as they are.
    """
    left = list[str]()
    for name, module in model.named_modules():
        if isinstance(module, ComponentModule) and module not in (model.embedder, model.head):
            module.forward = _in_float8(module.forward)  # type: ignore[method-assign]
            own = module.named_parameters(name, recurse=False)
            left += [one for one, matrix in own if matrix.dim() == 2 and any(size % _MULTIPLE for size in matrix.shape)]
    return left


def _in_float8(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*arguments: Any) -> Tensor:
        with Float8Products():
            return forward(*arguments)

    return run


class Float8Products(TorchFunctionMode):
    """``F.linear`` is :func:`float8_linear`, where it can be."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What ``func`` gives."""
        if func is F.linear and not kwargs and torch.is_grad_enabled() and _fits(args[0], args[1]):
            return float8_linear(*args)
        return func(*args, **(kwargs or {}))


def _fits(x: Tensor, weight: Tensor) -> bool:
    sizes = (x.numel() // x.shape[-1], *weight.shape)
    return torch.is_autocast_enabled(x.device.type) and all(size % _MULTIPLE == 0 for size in sizes)


def float8_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` of ``x`` ``[..., D]`` and ``weight`` ``[n, D]`` in autocast's type, all three products in 8 bits.

    Each factor is scaled by its largest value: values in e4m3, gradients in e5m2 (arXiv 2209.05433).
    """
    dtype = torch.get_autocast_dtype(x.device.type)
    y: Tensor = _Float8Linear.apply(x.flatten(0, -2).to(dtype), weight.to(dtype))  # type: ignore[no-untyped-call]
    y = y.view(*x.shape[:-1], len(weight))
    return y if bias is None else y + bias.to(dtype)


class _Float8Linear(torch.autograd.Function):
    """What is kept for the gradient are both factors in 8 bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        (x8, x_scale), (w8, w_scale) = _narrow(x, _VALUES), _narrow(weight, _VALUES)
        ctx.save_for_backward(x8, x_scale, w8, w_scale)
        ctx.dtype = x.dtype
        return _product(x8, w8.t(), x_scale, w_scale, x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x8, x_scale, w8, w_scale = ctx.saved_tensors
        g8, g_scale = _narrow(gradient, _GRADIENTS)
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            to_x = _product(g8, _by_columns(w8), g_scale, w_scale, ctx.dtype)
        if ctx.needs_input_grad[1]:
            to_weight = _product(g8.t().contiguous(), _by_columns(x8), g_scale, x_scale, ctx.dtype)
        return to_x, to_weight


def _narrow(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``x`` in 8 bits, and the factor, float32 ``[]``, that gives ``x`` again."""
    largest = torch.finfo(dtype).max
    scale = largest / x.abs().amax().float().clamp(min=1e-12)
    return (x.float() * scale).clamp(-largest, largest).to(dtype), scale.reciprocal()


def _product(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``[N, D]`` by rows times ``[D, n]`` by columns."""
    return torch._scaled_mm(a, b, a_scale, b_scale, out_dtype=dtype, use_fast_accum=a.dtype == b.dtype)


def _by_columns(x: Tensor) -> Tensor:
    """The same matrix, laid out by columns."""
    return x.t().contiguous().t()
