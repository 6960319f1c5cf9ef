"""Forward and backward of a training step, recorded once as a CUDA graph and replayed.

A small model's kernels are shorter than the time it takes to launch them one by one; a graph launches them together.
What each kernel computes stays the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from caramba_plugins_standard.training import StepResult, Training

__all__ = ["CapturedStep", "launches_dominate", "why_not_recorded"]

_WARM_UP = 3
"""Passes before recording: they compile, choose algorithms and allocate workspaces, none of which can be recorded."""


_DOMINATES = 0.9
"""Share of a step's time in which it is launched, from which on a graph is worth its memory."""


def why_not_recorded(settings: Training) -> str | None:
    """What keeps a run's steps from being recorded, if anything; documents do not: sequences have one length."""
    if settings.activation_checkpointing != "none":
        return "what activation_checkpointing computes again cannot be recorded"
    if settings.parallel.data > 1:
        return "a step of several processes is not recorded"
    return None if settings.strategy.takes_graphs else "this strategy reads and writes a file within a step"


def launches_dominate(step: Callable[[], object]) -> bool:
    """Whether the device is through with ``step`` hardly later than its kernels are launched; takes one step."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    launched = time.perf_counter()
    torch.cuda.synchronize()
    return launched - began > _DOMINATES * (time.perf_counter() - began)


class CapturedStep:
    """``step`` as a graph; calling it copies the tokens in and replays.

    ``step`` must leave gradients in ``parameters``, wait for nothing, and have shapes that depend on its tokens' shape
    alone.  The gradients' memory belongs to the graph: replaying overwrites it, so nothing may set them to ``None``.
    """

    def __init__(
        self, step: Callable[[Tensor], StepResult], tokens: Tensor, parameters: Sequence[nn.Parameter]
    ) -> None:
        self._tokens = tokens.clone()
        device = tokens.device
        random = torch.cuda.get_rng_state(device)
        current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                _forget(parameters)
                step(self._tokens)
        current.wait_stream(side)
        _forget(parameters)
        torch.cuda.set_rng_state(random, device)  # a resumed run draws what the first one drew
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._result = step(self._tokens)

    def __call__(self, tokens: Tensor) -> StepResult:
        """Replay for other tokens of the same shape; the result's tensors hold until the next call."""
        self._tokens.copy_(tokens, non_blocking=True)
        self._graph.replay()
        return self._result


def _forget(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
