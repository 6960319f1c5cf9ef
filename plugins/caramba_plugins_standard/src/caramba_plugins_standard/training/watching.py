"""How fast a run is, and what share of its device that is: numbers for people and trackers, of no effect."""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import Final

import torch
from caramba_terminal.numbers import format_bytes

from caramba_core.run.context import RunContext
from caramba_plugins_standard.parallel import process_count
from caramba_plugins_standard.training.planned import planned

__all__ = ["Watch", "matmul_peak", "progress_notes"]

_STEPS: Final = 20
"""Steps over which speed is taken."""

_SIZES: Final = {"cpu": 512, "mps": 4096}
_LARGEST: Final = 8192
_PRODUCTS: Final = 20


class Watch:
    """Speed, utilization and memory of a run, step by step.

    Utilization (MFU) is the operations that the plan counts, backward pass and teacher included, a second, over those
    of a large matrix product on the same device in the same number type, measured once.
    """

    def __init__(self, context: RunContext, tokens_a_step: int) -> None:
        self._device = context.device
        self._tokens = tokens_a_step
        self._ends = deque[float]([time.perf_counter()], maxlen=_STEPS + 1)
        plan = planned(context)
        self._per_token = plan.get("operations", 0) / max(1, plan.get("tokens", 0))
        self._peak = matmul_peak(self._device, context.dtype_name) * process_count()

    def step(self) -> dict[str, float]:
        """What is known behind a step: ``tokens_per_second``, ``mfu``, and ``memory_bytes``, the peak of the device.

        On a CPU, memory is that of the process.
        """
        self._ends.append(time.perf_counter())
        seconds = self._ends[-1] - self._ends[0]
        found = {"tokens_per_second": (len(self._ends) - 1) * self._tokens / seconds if seconds > 0 else 0.0}
        if self._device.type == "cuda":
            found["memory_bytes"] = float(torch.cuda.max_memory_allocated(self._device))
        elif self._device.type == "cpu":
            unit = 1 if sys.platform == "darwin" else 1024
            found["memory_bytes"] = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
        if self._peak and self._per_token:
            found["mfu"] = found["tokens_per_second"] * self._per_token / self._peak
        return found


def progress_notes(values: Mapping[str, float], lr: float, watched: Mapping[str, float]) -> list[str]:
    """What a line of progress says beside speed and time, the most important first."""
    said = [f"loss {values['loss']:.4f}"] if "loss" in values else []
    if "mfu" in watched:
        said.append(f"MFU {watched['mfu']:.0%}")
    if "gradient_norm" in values:
        said.append(f"norm {values['gradient_norm']:.3g}")
    said.append(f"lr {lr:.2g}")
    if "memory_bytes" in watched:
        said.append(format_bytes(int(watched["memory_bytes"])))
    return said


@cache
def matmul_peak(device: torch.device, dtype_name: str) -> float:
    """Operations a second of a product of two large square matrices, the quickest of a few, as others may use the
    device; 0 where there is no room for them.
    """
    size = _SIZES.get(device.type, _LARGEST)
    ends = []
    try:
        a = torch.ones(size, size, device=device, dtype=getattr(torch, dtype_name))
        for _ in range(_PRODUCTS + 2):  # the first one warms up
            a @ a
            _synchronize(device)
            ends.append(time.perf_counter())
    except torch.OutOfMemoryError:
        return 0.0
    return 2 * size**3 / min(end - begin for begin, end in pairwise(ends))


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
