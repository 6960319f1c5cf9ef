"""Where the time of a conversion goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

__all__ = ["PER_TOKEN", "Clock"]

PER_TOKEN: Final = frozenset({"survey", "moments", "sums", "passes"})
"""Phases that take as long as there are calibration tokens; the others take the same with any number."""


class Clock:
    """Seconds of each phase of a conversion; a CUDA device is waited for where a phase ends.

    ``survey`` and ``moments``: probes of the teacher's attentions, and what is summed up of them.  ``starts``: the
    closed forms.  ``refinements``: a transplant's own least squares.  ``sums`` and ``refits``: those of output
    projections, and solving for them.  ``passes``: the models run on from layer to layer.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens in the block."""
        began = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds[name] += time.perf_counter() - began
