"""The torch side of a component: a module whose parameters are exactly what its config declared.

The seam of a layer is ``forward(x, frame) -> y`` with ``x`` of shape ``[B, T, D]``.  An attention implements two ways
through it, chosen by ``frame.cache``:

* ``None``: training and prefill without a cache, one fused call;
* a :class:`~caramba_core.nn.cache.Cache`: ``frame.cache.layer(self.site, frame.application)`` is this layer's cache;
  new keys and values are appended to it, and every query sees the cached tokens before it.

A layer whose output projection can be refitted has ``mix(x, frame)``, ``[B, T, n]``: what the projection that its
config names in ``output_weights`` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caramba_core.components import Layer
from caramba_core.nn.frame import Frame

__all__ = ["ComponentModule", "TopologyModule", "linear"]

_FEW_ROWS = 4
"""Up to so many rows, reading the weights is all that a product costs."""


class ComponentModule(nn.Module):
    """Base of the modules that configs build: registers the declared weights under their declared names.

    ``config`` and ``width`` are the declaration.  ``site`` is the node's dotted name, set by the builder; read it only
    where there is a cache: every block has another name, so a compiled block that reads it is compiled once per block.
    """

    site: str

    def __init__(self, config: Layer, width: int) -> None:
        super().__init__()
        self.config = config
        self.width = width
        self.site = ""
        self._joined: dict[tuple[str, ...], Tensor] = {}
        for name, weight in config.weights(width).items():
            dtype = None if weight.dtype is None else getattr(torch, weight.dtype)
            empty = torch.empty(weight.shape, dtype=dtype)
            if weight.trainable:
                self.register_parameter(name, nn.Parameter(empty))
            else:
                self.register_buffer(name, empty)

    def products(self, x: Tensor, *weights: tuple[str, str]) -> tuple[Tensor, ...]:
        """``[B, T, D]`` times weights ``[n, D]`` by their names, each with the name of its bias, if there is one.

        One product where :meth:`join` laid them side by side or the compiler does (autocast copies them), else several.
        """
        own = [getattr(self, name) for name, _ in weights]
        biases = [self._parameters.get(bias) for _, bias in weights]
        joined = None if torch.is_grad_enabled() else self._joined.get(tuple(name for name, _ in weights))
        narrows = [isinstance(weight, Tensor) and weight.dtype == torch.float32 != x.dtype for weight in own]
        if all(narrows) and torch.compiler.is_compiling() and torch.is_grad_enabled():
            joined = torch.cat([weight.to(x.dtype) for weight in own])
        if joined is None:
            return tuple(linear(x, weight, bias) for weight, bias in zip(own, biases, strict=True))
        parts = linear(x, joined).split([len(weight) for weight in own], dim=-1)
        return tuple(part if bias is None else part + bias for part, bias in zip(parts, biases, strict=True))

    def join(self, *names: str) -> None:
        """Lay weights side by side in memory, which the parameters become views of; do not replace their data."""
        if names and names not in self._joined:
            weights = [getattr(self, name) for name in names]
            self._joined[names] = torch.cat([weight.detach() for weight in weights])
            for weight, part in zip(weights, self._joined[names].split([len(each) for each in weights]), strict=True):
                weight.data = part

    def joint_weights(self) -> tuple[str, ...]:
        """Names of weights that :meth:`products` multiplies together, in its order; none if it is not used."""
        return ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._joined.clear()  # moved or cast, parameters are no views any more
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D']``."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")


class TopologyModule(ComponentModule):
    """Base of the modules of topologies with a name of their own: holds the module of each body under its name."""

    def __init__(self, config: Layer, width: int, bodies: Mapping[str, nn.Module]) -> None:
        super().__init__(config, width)
        self.bodies = tuple(bodies)
        for name, module in bodies.items():
            self.add_module(name, module)

    def body_named(self, name: str) -> nn.Module:
        """The module of the body with this name."""
        module = self._modules[name]
        assert module is not None
        return module


def linear(x: Tensor, weight: Tensor | nn.Module, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` as ``F.linear`` computes it: ``[..., D]`` times ``[n, D]`` is ``[..., n]``.

    One token of a few sequences, in float32 on a CPU and without a gradient, goes through the weights as a batch of two
    halves: torch's matrix-vector product reads them on one thread, its batched product on several (torch 2.13 with MKL
    on two cores of an AMD EPYC: 11 and 33 GB/s).  Its last bits depend on where the weights lie.

    A module in a weight's place (one with an adapter) computes the product itself, as ``weight(x, bias)``.
    """
    if isinstance(weight, nn.Module):
        return weight(x, bias)  # type: ignore[no-any-return]
    if (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and 0 < x.numel() <= _FEW_ROWS * x.shape[-1]
        and (x.dim() < 3 or x.shape[-2] == 1)
        and not torch.is_grad_enabled()
        and weight.is_contiguous()
        and len(weight) % 2 == 0
        and not torch.compiler.is_compiling()
    ):
        columns = x.reshape(1, -1, x.shape[-1]).transpose(1, 2)  # not a view by other strides: those take a slow way
        y = torch.bmm(weight.view(2, -1, x.shape[-1]), columns.expand(2, -1, -1)).flatten(0, 1)
        y = y.t().reshape(*x.shape[:-1], -1) if columns.shape[2] > 1 else y.view(*x.shape[:-1], -1)
        return y if bias is None else y + bias
    return F.linear(x, weight, bias)
