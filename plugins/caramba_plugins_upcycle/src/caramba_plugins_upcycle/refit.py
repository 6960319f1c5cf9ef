"""Refitting an output projection by ridge regression: what a layer mixes, to what it should give."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from caramba_plugins_standard.parallel.team import Team
from torch import Tensor, nn

from caramba_core.components import Layer
from caramba_plugins_upcycle.clock import Clock

__all__ = ["Refit", "output_weights", "refit_output"]


class Refit:
    """Normal equations of ``min |Y W - O|^2 + ridge m |W - W0|^2`` in float64, with a column of ones for a bias.

    ``Y`` ``[N, n]`` is what the student's layer mixes on its own inputs, ``O`` ``[N, D]`` what the layer should give,
    ``W0`` the projection as started, ``m`` the mean of the diagonal of ``Y^T Y``.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, products: torch.dtype = torch.float64) -> None:
        """From a projection ``[D, n]`` and a bias ``[D]``, if any.

        ``products`` is the type that a batch is multiplied out in; sums are of float64 in any case.  Products in
        float32 leave errors of about 1e-6, which the ridge divides by its size.
        """
        # MPS has no float64
        self._device = torch.device("cpu") if weight.device.type == "mps" else weight.device
        self._products = products
        self._has_bias = bias is not None
        rows = weight.T if bias is None else torch.cat([weight.T, bias[None]])
        self._start = rows.to(self._device, torch.float64)
        self._gram = self._start.new_zeros(len(rows), len(rows))
        self._cross = torch.zeros_like(self._start)
        self._energy = self._start.new_zeros(())

    def update(self, mixed: Tensor, output: Tensor) -> None:
        """Take in ``[..., n]`` and ``[..., D]`` of the same tokens."""
        y = mixed.flatten(0, -2).to(self._device, self._products)
        if self._has_bias:
            y = torch.cat([y, y.new_ones(y.shape[0], 1)], dim=1)
        o = output.flatten(0, -2).to(self._device, self._products)
        self._gram += y.T @ y
        self._cross += y.T @ o
        self._energy += o.double().square().sum()

    def pool(self, team: Team) -> None:
        """Take in what the other processes took in."""
        self._gram, self._cross, self._energy = map(team.sum, (self._gram, self._cross, self._energy))

    def solve(self, ridge: float) -> tuple[Tensor, Tensor | None, dict[str, float]]:
        """The refitted projection ``[D, n]`` and bias ``[D]``, if any, and what it bought.

        That is the error over the energy of what was wanted, ``before`` and ``after``.
        """
        mixed = len(self._gram) - self._has_bias
        strength = ridge * self._gram.diagonal()[:mixed].mean()
        eye = torch.eye(len(self._gram), dtype=torch.float64, device=self._device)
        solved = torch.linalg.solve(self._gram + strength * eye, self._cross + strength * self._start)
        report = {"before": self._error(self._start), "after": self._error(solved)}
        return solved[:mixed].T.contiguous(), solved[-1].contiguous() if self._has_bias else None, report

    def _error(self, w: Tensor) -> float:
        squared = (w * (self._gram @ w)).sum() - 2 * (w * self._cross).sum() + self._energy
        return float(squared.clamp_min(0) / self._energy)


def output_weights(config: Layer, module: nn.Module) -> tuple[nn.Parameter, nn.Parameter | None] | None:
    """The projection that a refit replaces, and its bias; none where the layer has no ``mix`` in front of one."""
    if config.output_weights is None or not hasattr(module, "mix"):
        return None
    projection, bias = (getattr(module, name, None) for name in config.output_weights)
    return None if projection is None else (projection, bias)


def refit_output(
    config: Layer,
    module: nn.Module,
    examples: Iterable[tuple[Tensor, Tensor]],
    ridge: float,
    *,
    clock: Clock,
    products: torch.dtype = torch.float64,
    team: Team | None = None,
) -> dict[str, float]:
    """Refit a layer's output projection to pairs of what it mixes ``[B, T, n]`` and should give ``[B, T, D]``.

    Each process of a ``team`` has pairs of its own; the fit is to all of them, and the same in each process.

    The module gets new parameters; the old ones, which may be the teacher's, stay what they were.
    """
    found = output_weights(config, module)
    assert found is not None
    assert config.output_weights is not None
    refit = Refit(*found, products=products)
    with clock.phase("sums"):
        for mixed, wanted in examples:
            refit.update(mixed, wanted)
        if team is not None:
            refit.pool(team)
    with clock.phase("refits"):
        *solved, report = refit.solve(ridge)
        for name, old, new in zip(config.output_weights, found, solved, strict=True):
            if old is not None and new is not None:
                made = nn.Parameter(new.to(old), requires_grad=old.requires_grad)
                if team is not None:
                    team.spread([made])
                setattr(module, name, made)
    return report
