"""The collectors behind the moments' configs: torch, float64 sums, one update a batch.

Axes: B batch, T tokens, H query heads, G key/value heads, m = H/G, d width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from caramba_plugins_standard.probing import Probe
from torch import Tensor

from caramba_core.component import Attention
from caramba_plugins_upcycle.transplant import Moment

__all__ = [
    "AttendedKeyCollector",
    "AttendedValueCollector",
    "DistanceCollector",
    "KeyCollector",
    "QueryCollector",
]


def _wide(x: Tensor) -> Tensor:
    """Float64; on the CPU where the device has none."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


class _Sums:
    """Named float64 sums; tensors that grow are padded with zeros at the end of the last axis."""

    def __init__(self, config: Moment, source: Attention, width: int) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, name: str, value: Tensor) -> None:
        old = self.sums.get(name)
        if old is None:
            self.sums[name] = value
        elif old.shape[-1] == value.shape[-1]:
            old += value
        else:
            longer, shorter = (old, value) if old.shape[-1] > value.shape[-1] else (value, old)
            longer[..., : shorter.shape[-1]] += shorter
            self.sums[name] = longer

    def mean(self, name: str) -> Tensor:
        assert self.count, "a moment of nothing: no batch was seen"
        return (self.sums[name] / self.count).cpu()


class QueryCollector(_Sums):
    """Mean and second moment of queries, a head."""

    def update(self, probe: Probe) -> None:
        """Take one batch in."""
        query = _wide(probe.query).transpose(0, 1).flatten(1, 2)  # [H, B T, d]
        self.add("mean", query.sum(1))
        self.add("second", query.transpose(1, 2) @ query)
        self.count += query.shape[1]

    def result(self) -> Mapping[str, Tensor]:
        """``mean`` ``[H, d]``, ``second`` ``[H, d, d]``."""
        return {"mean": self.mean("mean"), "second": self.mean("second")}


class KeyCollector(_Sums):
    """Mean and second moment of keys, all heads side by side."""

    def update(self, probe: Probe) -> None:
        """Take one batch in."""
        key = _wide(_side_by_side(probe.key)).flatten(0, 1)
        self.add("mean", key.sum(0))
        self.add("second", key.T @ key)
        self.count += key.shape[0]

    def result(self) -> Mapping[str, Tensor]:
        """``mean`` ``[G d]``, ``second`` ``[G d, G d]``."""
        return {"mean": self.mean("mean"), "second": self.mean("second")}


class DistanceCollector(_Sums):
    """Mean attention by distance."""

    def update(self, probe: Probe) -> None:
        """Take one batch in."""
        batch, _, tokens, _ = probe.probabilities.shape
        attended = probe.probabilities.sum(0)  # [H, T, T]
        attended = attended.masked_fill(torch.arange(tokens, device=attended.device) == 0, 0.0)
        # Row t read backwards and shifted by t puts distance t - s into column T - 1 + (t - s): pad, then read as rows
        # of 2T - 1 instead of 2T.
        skewed = torch.nn.functional.pad(attended.flip(-1), (0, tokens)).flatten(1)[:, :-tokens]
        by_distance = skewed.view(-1, tokens, 2 * tokens - 1).sum(1)[:, tokens - 1 :]
        self.add("attention", _wide(by_distance))
        self.count += batch

    def result(self) -> Mapping[str, Tensor]:
        """``attention`` ``[H, T]``, float64; a head that only ever attends to the first token has zeros."""
        total = self.mean("attention")
        return {"attention": total / total.sum(-1, keepdim=True).clamp_min(torch.finfo(total.dtype).tiny)}


class AttendedKeyCollector(_Sums):
    """Covariance of keys under attention."""

    def update(self, probe: Probe) -> None:
        """Take one batch in."""
        key = _side_by_side(probe.key)  # [B, T, G d]
        weight = probe.probabilities.sum((1, 2))  # [B, T]: how much each token is attended to
        centre = _wide(probe.probabilities.flatten(1, 2) @ key).flatten(0, 1)  # [B H T, G d]
        wide = _wide(key)
        spread = torch.einsum("bsi,bs,bsj->ij", wide, _wide(weight), wide) - centre.T @ centre
        self.add("covariance", spread)
        self.count += centre.shape[0]

    def result(self) -> Mapping[str, Tensor]:
        """``covariance`` ``[G d, G d]``."""
        return {"covariance": self.mean("covariance")}


class AttendedValueCollector(_Sums):
    """Mean and second moment of attended values."""

    def update(self, probe: Probe) -> None:
        """Take one batch in."""
        attended = _wide(probe.probabilities.flatten(1, 2) @ _side_by_side(probe.value)).flatten(0, 1)  # [B H T, G d]
        self.add("mean", attended.sum(0))
        self.add("second", attended.T @ attended)
        self.count += attended.shape[0]

    def result(self) -> Mapping[str, Tensor]:
        """``mean`` ``[G d]``, ``second`` ``[G d, G d]``."""
        return {"mean": self.mean("mean"), "second": self.mean("second")}


def _side_by_side(x: Tensor) -> Tensor:
    """``[B, G, T, d] -> [B, T, G d]``."""
    return x.transpose(1, 2).flatten(2)
