"""What a pass through a model carries beside the activations: positions, cache, taps, padding.

Axes: B batch, T tokens of this pass, S tokens that attention sees.
"""

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
    """Captures inputs and outputs of chosen nodes, in compiled models too (forward hooks would break their graphs).

    ``LanguageModel.tap`` chooses the nodes; each pass appends their ``(input, output)`` in the order of execution.
    Repeated blocks call :meth:`flush` between one another, outside compiled code, so that
    ``sink(index, input, output)`` can use a pair and drop it before the next block runs.
    """

    __slots__ = ("_count", "pairs", "sink")

    def __init__(self, sink: Callable[[int, Tensor, Tensor], None]) -> None:
        self.sink = sink
        self.pairs: list[tuple[Tensor, Tensor]] = []
        self._count = 0

    def flush(self, state: Tensor | None = None) -> None:
        """Hand the captured pairs to the sink; ``index`` counts nodes in the order of execution.

        ``state`` is what flows on between two blocks, which a tap may keep.
        """
        for x, y in self.pairs:
            self.sink(self._count, x, y)
            self._count += 1
        self.pairs.clear()


@dataclass(frozen=True, slots=True)
class Frame:
    """What every layer is given beside its input.

    ``positions``, int64 ``[T]`` (or ``[B, T]`` where sequences differ), are those of this pass's tokens.  With a
    ``cache``, attention sees its tokens before this pass's.  ``taps`` collects inputs and outputs of chosen nodes.
    ``application`` counts the runs of a body that a topology applies several times; each has a cache of its own.

    ``starts``, int64 ``[B]``, is given for sequences of unequal lengths, which are padded on the left: the index,
    counted from the first token of the cache, at which each sequence begins.

    ``ends``, int64 ``[B]``, makes the pass a decode step: one token of each sequence, the last of ``ends`` tokens that
    the cache has room for.  Nothing then depends on a number that the host knows, so that the pass can be recorded as
    a CUDA graph; attentions read and write the cache through :meth:`LayerCache.put` and :meth:`LayerCache.entry`.
    """

    positions: Tensor
    cache: Cache | None = None
    taps: Taps | None = None
    application: int = 0
    starts: Tensor | None = None
    ends: Tensor | None = None

    def within(self, application: int, of: int) -> Frame:
        """The frame of application ``application`` of a body that is applied ``of`` times."""
        return replace(self, application=self.application * of + application)

    def hidden_keys(self, before: int, context: int) -> Tensor | None:
        """Which of the last ``context`` keys are hidden, as padding is: bool ``[B, T, S]``; ``None`` where none is.

        ``before`` tokens precede this pass's first one.  Padding sees itself, so that no softmax is empty.
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
        """The frame of tokens ``[B, T]`` that follow the cached ones, or start at position 0."""
        start = 0 if cache is None else cache.length
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        if starts is not None:
            positions = (positions - starts[:, None]).clamp(min=0)
        return cls(positions=positions, cache=cache, taps=taps, starts=starts)

    @classmethod
    def step(cls, cache: Cache, ends: Tensor, *, starts: Tensor | None = None) -> Frame:
        """The frame of a decode step: one token of each sequence, the last of ``ends``, int64 ``[B]``."""
        positions = ends - 1 if starts is None else (ends - 1 - starts).clamp(min=0)
        return cls(positions=positions[:, None], cache=cache, starts=starts, ends=ends)
