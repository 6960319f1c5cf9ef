"""Refitting an output projection by ridge regression: what the student mixes, to what it should give."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

__all__ = ["Refit", "RefitReport"]


@attrs.frozen(kw_only=True)
class RefitReport:
    """Error over the teacher's energy, with the projection as it was and as refitted."""

    before: float
    after: float


class Refit:
    """Normal equations of ``min |Y W - O|^2 + ridge m |W - W0|^2`` in float64, with a column of ones for a bias.

    ``Y`` ``[N, n]`` is what the student's layer mixes on its own inputs, ``O`` ``[N, D]`` what the layer should give,
    ``W0`` the projection as started, ``m`` the mean of the diagonal of ``Y^T Y``.
    """

    def __init__(
        self,
        mixed: int,
        width: int,
        device: torch.device,
        *,
        bias: bool = True,
        products: torch.dtype = torch.float64,
    ) -> None:
        """``products`` is the type that a batch is multiplied out in; sums are of float64 in any case."""
        self._device = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
        self._mixed = mixed
        self._products = products
        rows = mixed + 1 if bias else mixed
        self._gram = torch.zeros(rows, rows, dtype=torch.float64, device=self._device)
        self._cross = torch.zeros(rows, width, dtype=torch.float64, device=self._device)
        self._energy = torch.zeros((), dtype=torch.float64, device=self._device)

    def update(self, mixed: Tensor, output: Tensor) -> None:
        """Take in ``[..., n]`` and ``[..., D]`` of the same tokens."""
        y = mixed.flatten(0, -2).to(self._device, self._products)
        if len(self._gram) > self._mixed:
            y = torch.cat([y, y.new_ones(y.shape[0], 1)], dim=1)
        o = output.flatten(0, -2).to(self._device, self._products)
        self._gram += y.T @ y
        self._cross += y.T @ o
        self._energy += o.double().square().sum()

    def solve(self, weight: Tensor, bias: Tensor | None, ridge: float) -> tuple[Tensor, Tensor | None, RefitReport]:
        """The refitted projection ``[D, n]`` and bias ``[D]``, if any, near the given ones, and what it bought.

        A bias that is not given starts at zero.
        """
        start = torch.zeros_like(self._cross)
        start[: self._mixed] = weight.T.to(start)
        if bias is not None:
            start[self._mixed] = bias.to(start)
        strength = ridge * self._gram.diagonal()[: self._mixed].mean()
        eye = torch.eye(len(self._gram), dtype=torch.float64, device=self._device)
        solved = torch.linalg.solve(self._gram + strength * eye, self._cross + strength * start)
        report = RefitReport(before=self._error(start), after=self._error(solved))
        found = solved[-1].contiguous() if len(solved) > self._mixed else None
        return solved[: self._mixed].T.contiguous(), found, report

    def _error(self, w: Tensor) -> float:
        squared = (w * (self._gram @ w)).sum() - 2 * (w * self._cross).sum() + self._energy
        return float(squared.clamp_min(0) / self._energy)
