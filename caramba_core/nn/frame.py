"""What holds for one pass through a model, beside the activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from caramba_core.nn.cache import Cache

__all__ = ["Frame", "Taps"]


class Taps:
    """Inputs and outputs of chosen nodes, captured by the compiled graph itself.

    ``LanguageModel.tap`` chooses the nodes; each pass appends their ``(input, output)`` in the order of execution.
    Repeated blocks call :meth:`flush` between one another, outside compiled code, so that
    ``sink(index, input, output)`` can use a pair and drop it before the next block runs.
    """

    __slots__ = ("_count", "pairs", "sink")

    def __init__(self, sink: Callable[[int, Tensor, Tensor], None]) -> None:
        self.sink = sink
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self._count = 0

    def flush(self) -> None:
        """Hand the captured pairs to the sink; ``index`` counts sites in the order of execution."""
        for x, y in self.pairs:
            self.sink(self._count, x, y)
            self._count += 1
        self.pairs.clear()


@dataclass(frozen=True, slots=True)
class Frame:
    """``positions`` int64 ``[T]`` (or ``[B, T]`` where sequences differ) of the tokens of this pass.

    ``cache`` is what decoding keeps; with one, attention sees the cache's tokens before this pass's.  ``taps`` collects
    inputs and outputs of chosen nodes.  ``application`` counts the runs of a body that a topology applies several
    times; each run has a cache of its own.

    ``starts`` int64 ``[B]`` is given where sequences of unequal lengths stand right-aligned: the place, counted from
    the first of the cache, at which each begins.  What comes before is padding.
    """

    positions: Tensor
    cache: Cache | None = None
    taps: Taps | None = None
    application: int = 0
    starts: Tensor | None = None

    def within(self, application: int, of: int) -> Frame:
        """The frame of one of ``of`` applications of a body."""
        return replace(self, application=self.application * of + application)

    def hidden_padding(self, before: int, context: int) -> Tensor | None:
        """Bool ``[B, T, S]``: keys that are padding, among the last ``context`` ones; none where there is no padding.

        The pass's first token is the one after ``before`` others.  Padding sees itself, so that no softmax is empty.
        """
        if self.starts is None:
            return None
        end = before + self.positions.shape[-1]
        key = torch.arange(end - context, end, device=self.starts.device)
        query = torch.arange(before, end, device=self.starts.device)[:, None]
        return (key < self.starts[:, None, None]) & (key != query)

    @classmethod
    def of(
        cls,
        tokens: Tensor,
        *,
        cache: Cache | None = None,
        taps: Taps | None = None,
        starts: Tensor | None = None,
    ) -> Frame:
        """The frame of tokens ``[B, T]`` that follow what the cache holds, or start at position 0."""
        start = 0 if cache is None else cache.length
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        if starts is not None:
            positions = (positions - starts[:, None]).clamp(min=0)
        return cls(positions=positions, cache=cache, taps=taps, starts=starts)
