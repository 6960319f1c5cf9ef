"""Chains of layers: the modules behind a graph's scopes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from torch import Tensor, nn

from caramba_core.nn.frame import Frame

__all__ = ["Inline", "Sequence", "Wiring", "chain", "names_of"]

Inline: TypeAlias = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
"""Wiring without weights: ``(run, x) -> y``, where ``run`` applies the wrapped layers."""

Wiring: TypeAlias = tuple["str | tuple[Inline, Wiring]", ...]
"""Names of layers in order; an inline topology stands as the pair of its function and its own layers."""


def chain(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The layers alone: the wiring of a list of layers, which the builder unfolds."""
    return run(x)


class Sequence(nn.Module):
    """Layers one after the other, each registered under its node's local name.

    ``wiring`` says in which order and inside which inline topologies they run.  ``tapped`` names the layers whose input
    and output ``frame.taps`` collects.
    """

    def __init__(self, layers: Mapping[str, nn.Module], wiring: Wiring) -> None:
        super().__init__()
        self.wiring = wiring
        self.tapped: frozenset[str] = frozenset()
        for name, module in layers.items():
            self.add_module(name, module)

    def wiring_names(self) -> tuple[str, ...]:
        """Local names of the layers, in the order of execution."""
        return names_of(self.wiring)

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D']``."""
        return self.run(self.wiring, x, frame)

    def run(self, wiring: Wiring, x: Tensor, frame: Frame) -> Tensor:
        """Apply a part of this chain's wiring."""
        for step in wiring:
            if isinstance(step, str):
                x = self._call(step, x, frame)
            else:
                inline, inner = step
                x = inline(partial(self._run_inner, inner, frame), x)
        return x

    def _run_inner(self, wiring: Wiring, frame: Frame, x: Tensor) -> Tensor:
        return self.run(wiring, x, frame)

    def _call(self, name: str, x: Tensor, frame: Frame) -> Tensor:
        layer = self._modules[name]
        assert layer is not None
        y: Tensor = layer(x, frame)
        if frame.taps is not None and name in self.tapped:
            frame.taps.pairs.append((x, y))
        return y


def names_of(wiring: Wiring) -> tuple[str, ...]:
    """Local names of the layers of a wiring, in the order of execution."""
    names: list[str] = []
    for step in wiring:
        names.extend((step,) if isinstance(step, str) else names_of(step[1]))
    return tuple(names)
