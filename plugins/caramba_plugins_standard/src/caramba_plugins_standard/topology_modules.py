"""Topologies and routers in torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from caramba_core.nn.build import load_object
from caramba_core.nn.frame import Frame
from caramba_core.nn.module import TopologyModule, linear
from caramba_plugins_standard.fans import Branching, Parallel, SoftmaxRouter, TopKRouter
from caramba_plugins_standard.topologies import Cyclic, Recurrent

__all__ = [
    "BranchingModule",
    "CyclicModule",
    "NestedModule",
    "ParallelModule",
    "RecurrentModule",
    "residual",
    "softmax",
    "top_k",
]


def residual(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``x + f(x)``."""
    return x + run(x)


class NestedModule(TopologyModule):
    """Bodies one after the other."""

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D']``."""
        for name in self.bodies:
            x = self.body_named(name)(x, frame)
            _flush(frame, x)
        return x


class RecurrentModule(TopologyModule):
    """One body applied again and again."""

    def __init__(self, config: Recurrent, width: int, bodies: Mapping[str, nn.Module]) -> None:
        super().__init__(config, width, bodies)
        self.times = config.times
        self.inject = config.inject

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        body = self.body_named("body")
        state = x
        for application in range(self.times):
            if self.inject and application > 0:
                state = state + x
            state = body(state, frame.within(application, self.times))
            _flush(frame, state)
        return state


class CyclicModule(TopologyModule):
    """Bodies in rotation."""

    def __init__(self, config: Cyclic, width: int, bodies: Mapping[str, nn.Module]) -> None:
        super().__init__(config, width, bodies)
        self.applications = {body.name: body.applications for body in config.bodies()}
        self.times = config.times

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        for application in range(self.times):
            turn, index = divmod(application, len(self.bodies))
            name = self.bodies[index]
            x = self.body_named(name)(x, frame.within(turn, self.applications[name]))
            _flush(frame, x)
        return x


class ParallelModule(TopologyModule):
    """All bodies on the same input, combined."""

    out_proj: nn.Parameter

    def __init__(self, config: Parallel, width: int, bodies: Mapping[str, nn.Module]) -> None:
        super().__init__(config, width, bodies)
        self.combine = config.combine

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D']``."""
        outputs: list[Tensor] = [self.body_named(name)(x, frame) for name in self.bodies]
        if self.combine == "concatenate":
            return linear(torch.cat(outputs, dim=-1), self.out_proj)
        total = outputs[0]
        for output in outputs[1:]:
            total = total + output
        return total / len(outputs) if self.combine == "mean" else total


class BranchingModule(TopologyModule):
    """All bodies on the same input, each weighed by the router."""

    def __init__(self, config: Branching, width: int, bodies: Mapping[str, nn.Module]) -> None:
        super().__init__(config, width, bodies)
        self.router = config.router
        self.route: Callable[..., Tensor] = load_object(config.router.builds)
        self.router_weights = tuple(config.router.weights(width, len(bodies)))

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D']``."""
        weights = {name: getattr(self, f"router_{name}") for name in self.router_weights}
        shares = self.route(self.router, x, weights).unsqueeze(-1).unbind(dim=-2)
        outputs: list[Tensor] = [self.body_named(name)(x, frame) for name in self.bodies]
        total = shares[0] * outputs[0]
        for share, output in zip(shares[1:], outputs[1:], strict=True):
            total = total + share * output
        return total


def softmax(router: SoftmaxRouter, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """``[B, T, D] -> [B, T, branches]``, summing to 1."""
    return _router_scores(x, weights).softmax(dim=-1).to(x.dtype)


def top_k(router: TopKRouter, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """``[B, T, D] -> [B, T, branches]``, summing to 1 over the ``k`` chosen branches and 0 elsewhere."""
    scores = _router_scores(x, weights)
    best, index = scores.topk(router.k, dim=-1)
    return torch.zeros_like(scores).scatter(-1, index, best.softmax(dim=-1)).to(x.dtype)


def _router_scores(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    scores = linear(x, weights["weight"])
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _flush(frame: Frame, state: Tensor) -> None:
    """Hand on what was tapped so far; inside a compiled graph there is nothing to hand on yet."""
    if frame.taps is not None and not torch.compiler.is_compiling():
        frame.taps.flush(state)
