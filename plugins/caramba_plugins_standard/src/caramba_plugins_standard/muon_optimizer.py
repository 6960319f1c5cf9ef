"""Muon for matrices and AdamW for everything else, as one optimizer (torch; behind the config of the same name)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

__all__ = ["MuonWithAdamW"]


class MuonWithAdamW(torch.optim.Optimizer):
    """``torch.optim.Muon`` moves the matrices, ``torch.optim.AdamW`` the rest; groups and state are shared with both.

    Muon takes steps of AdamW's size (arXiv 2502.16982, equation 4), so that one learning rate serves both.
    """

    def __init__(
        self,
        groups: Iterable[Mapping[str, Any]],
        lr: float,
        *,
        momentum: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__([dict(group) for group in groups], {"lr": lr})
        self._parts: list[torch.optim.Optimizer] = []
        whole = self.param_groups
        self.param_groups = []
        for matrices in (True, False):
            chosen = [
                {**group, "params": kept}
                for group in whole
                if (kept := [parameter for parameter in group["params"] if (parameter.ndim == 2) is matrices])
            ]
            if not chosen:
                continue
            part: torch.optim.Optimizer = (
                torch.optim.Muon(chosen, lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")
                if matrices
                else torch.optim.AdamW(chosen, lr=lr, betas=betas, eps=eps)
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
