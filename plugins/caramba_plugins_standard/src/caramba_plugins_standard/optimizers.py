"""Optimizers: torch's own, with checked settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from caramba_core.components import component, option
from caramba_core.errors import InvalidValue
from caramba_plugins_standard.training import Optimizer

if TYPE_CHECKING:
    import torch

__all__ = ["SGD", "AdamW", "Muon"]


@component
class _Moments(Optimizer):
    """What AdamW knows, by itself or beside another optimizer."""

    betas: tuple[float, float] = option(default=(0.9, 0.95), help="decay of the first and of the second moment")
    eps: float = option(default=1e-8, help="added to the root of the second moment", above=0.0)
    weight_decay: float = option(
        default=0.0, help="shrinkage a step, times the learning rate", minimum=0.0, maximum=1.0
    )

    def __attrs_post_init__(self) -> None:
        for beta in self.betas:
            if not 0.0 <= beta < 1.0:
                raise InvalidValue("betas", f"{beta} is out of range", expected="two numbers from 0 to below 1")


@component
class AdamW(_Moments):
    """Adam with decoupled weight decay (arXiv 1711.05101); only matrices decay, norms and biases do not."""

    def create(self, parameters: Iterable[Mapping[str, Any]], lr: float) -> torch.optim.Optimizer:
        """``torch.optim.AdamW``, in one fused kernel where there is one."""
        import torch

        groups = _decaying(parameters, self.weight_decay)
        return torch.optim.AdamW(groups, lr=lr, betas=self.betas, eps=self.eps, fused=_fuses(groups))

    def state_values(self) -> int:
        """Two moments."""
        return 2

    def state_scalars(self) -> int:
        """The count of steps."""
        return 1


@component
class Muon(_Moments):
    """Momentum of each matrix, orthogonalized (Jordan et al. 2024), in steps of AdamW's size; AdamW for the rest.

    Embedder and head, which hold a row a token, are of the rest, as in the papers.
    """

    tables: Literal["adamw", "muon"] = option(default="adamw", help="what moves the matrices of embedder and head")
    momentum: float = option(default=0.95, help="share of the previous step that goes on", minimum=0.0, below=1.0)

    def create(self, parameters: Iterable[Mapping[str, Any]], lr: float) -> torch.optim.Optimizer:
        """Muon of all matrices of a shape together, and ``torch.optim.AdamW``."""
        from caramba_plugins_standard.muon_optimizer import MuonWithAdamW

        groups = _decaying(parameters, self.weight_decay)
        for group in groups:
            group["matrices"] = self.tables == "muon" or not group.get("tables")
        fused = _fuses(groups)
        return MuonWithAdamW(groups, lr, momentum=self.momentum, betas=self.betas, eps=self.eps, fused=fused)

    def moving(self, shape: tuple[int, ...], *, table: bool) -> Optimizer:
        """AdamW of vectors, and of embedder and head as ``tables`` says."""
        return self if len(shape) == 2 and (self.tables == "muon" or not table) else AdamW()

    def state_values(self) -> int:
        """One momentum."""
        return 1


@component
class SGD(Optimizer):
    """Gradient descent with momentum; only matrices decay, norms and biases do not."""

    momentum: float = option(default=0.9, help="share of the previous step that goes on", minimum=0.0, below=1.0)
    nesterov: bool = option(default=False, help="look ahead along the momentum")
    weight_decay: float = option(default=0.0, help="added to the gradient, times the weight", minimum=0.0, maximum=1.0)

    def __attrs_post_init__(self) -> None:
        if self.nesterov and not self.momentum:
            raise InvalidValue("nesterov", "has no meaning without momentum")

    def create(self, parameters: Iterable[Mapping[str, Any]], lr: float) -> torch.optim.Optimizer:
        """``torch.optim.SGD``."""
        import torch

        groups = _decaying(parameters, self.weight_decay)
        return torch.optim.SGD(groups, lr=lr, momentum=self.momentum, nesterov=self.nesterov)

    def state_values(self) -> int:
        """One momentum, if any."""
        return 1 if self.momentum else 0


def _fuses(groups: Iterable[Mapping[str, Any]]) -> bool:
    """Whether torch has one kernel of AdamW for all parameters of the groups."""
    return all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])


def _decaying(parameters: Iterable[Mapping[str, Any]], decay: float) -> list[dict[str, Any]]:
    """The groups with a decay of their own, split where some of their parameters must not decay."""
    groups: list[dict[str, Any]] = []
    for group in parameters:
        members = list(group["params"])
        if not decay:
            groups.append({**group, "params": members, "weight_decay": 0.0})
            continue
        for matrices in (True, False):
            chosen = [parameter for parameter in members if (parameter.ndim >= 2) is matrices]
            if chosen:
                groups.append({**group, "params": chosen, "weight_decay": decay if matrices else 0.0})
    return groups
