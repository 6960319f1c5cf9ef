"""Muon for matrices and AdamW for everything else, as one optimizer (torch; behind the config of the same name)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from caramba_plugins_standard.parallel.shards import gathered_stack, own_part, own_rows

__all__ = ["MuonWithAdamW", "StackedMuon", "orthogonalized"]

_STACK: Final = 2**26
"""Values that are orthogonalized at once: their copies are all the memory that a step needs."""


class StackedMuon(torch.optim.Optimizer):
    """What ``torch.optim.Muon`` does with ``adjust_lr_fn="match_rms_adamw"``, many matrices of a shape at a time.

    torch's own loop launches fifteen small products a matrix; a model of thirty blocks has matrices of a few shapes.
    Momentum is Nesterov's; steps have AdamW's size (arXiv 2502.16982, equation 4).  Where processes divide matrices,
    each has its rows of the momenta too, and all gather a stack in bfloat16 to orthogonalize it.
    """

    def __init__(self, groups: Iterable[Mapping[str, Any]], lr: float, *, momentum: float) -> None:
        super().__init__([dict(group) for group in groups], {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every matrix with a gradient."""
        assert closure is None
        for group in self.param_groups:
            for weights in _stacks(weight for weight in group["params"] if weight.grad is not None):
                self._move(weights, group)

    def _move(self, weights: list[Tensor], group: Mapping[str, Any]) -> None:
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        momenta = [own_part(self.state[weight]["momentum_buffer"]) for weight in weights]
        gradients = [own_part(weight.grad) for weight in weights if weight.grad is not None]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        whole = gathered_stack([each.bfloat16() for each in ahead], weights[0])
        direction = own_rows(orthogonalized(whole), weights[0]).to(weights[0].dtype)
        size, parts = 0.2 * max(weights[0].shape) ** 0.5, [own_part(weight) for weight in weights]
        torch._foreach_mul_(parts, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parts, direction.unbind(), alpha=-group["lr"] * size)


def _stacks(weights: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Matrices of one shape, type and device, at most ``_STACK`` values together."""
    alike = defaultdict(list)
    for weight in weights:
        alike[weight.shape, weight.dtype, weight.device].append(weight)
    for same in alike.values():
        count = max(1, _STACK // same[0].numel())
        for first in range(0, len(same), count):
            yield same[first : first + count]


def orthogonalized(x: Tensor) -> Tensor:
    """Singular values of each of ``[N, n, m]`` brought near one by five quintic Newton-Schulz steps.

    Coefficients and steps are those of ``torch.optim.Muon`` (Jordan et al. 2024), which leave them between 0.5 and 1.5.
    """
    if x.shape[1] > x.shape[2]:
        return orthogonalized(x.mT).mT
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon moves the matrices of groups with ``matrices``, ``torch.optim.AdamW`` the rest; both share groups and state.

    Muon takes steps of AdamW's size, so that one learning rate serves both.
    """

    def __init__(
        self,
        groups: Iterable[Mapping[str, Any]],
        lr: float,
        *,
        momentum: float,
        betas: tuple[float, float],
        eps: float,
        fused: bool = False,
    ) -> None:
        super().__init__([dict(group) for group in groups], {"lr": lr})
        self._parts: list[torch.optim.Optimizer] = []
        whole = self.param_groups
        self.param_groups = []
        for matrices in (True, False):
            chosen = [
                {**group, "params": kept}
                for group in whole
                if (kept := [p for p in group["params"] if (p.ndim == 2 and group["matrices"]) is matrices])
            ]
            if not chosen:
                continue
            part: torch.optim.Optimizer = (
                StackedMuon(chosen, lr, momentum=momentum)
                if matrices
                else torch.optim.AdamW(chosen, lr=lr, betas=betas, eps=eps, fused=fused)
            )
            part.state = self.state
            self._parts.append(part)
            self.param_groups += part.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of both."""
        assert closure is None
        for part in self._parts:
            part.step()
