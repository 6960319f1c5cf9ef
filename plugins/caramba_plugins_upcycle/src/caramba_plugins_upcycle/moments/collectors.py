"""The collectors behind the moments' configs: torch, float64 sums, one update a batch.

Axes: B batch, T tokens, H query heads, G key/value heads, m = H/G, d width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from caramba_plugins_standard.parallel.team import Team
from caramba_plugins_standard.probing import Probe
from torch import Tensor

from caramba_core.components import Attention
from caramba_plugins_upcycle.moments import QUERIES
from caramba_plugins_upcycle.transplant import Moment

__all__ = [
    "AttendedKeyCollector",
    "AttendedValueCollector",
    "DistanceCollector",
    "KeyCollector",
    "KeyValueCollector",
    "MeanCollector",
    "QueryCollector",
    "wide",
]


def wide(x: Tensor) -> Tensor:
    """Float64; on the CPU where the device has none."""
    return x.cpu().double() if x.device.type == "mps" else x.double()


class MeanCollector:
    """Base of collectors whose statistics are means: float64 sums, each with the number of what was summed.

    Sums that grow are padded with zeros at the end of the last axis.
    """

    def __init__(self, config: Moment, source: Attention, width: int) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, value: Tensor, count: int) -> None:
        """Add the sum of ``count`` values to a statistic."""
        old = self._sums.get(name)
        if old is not None:
            longer, shorter = (old, value) if old.shape[-1] >= value.shape[-1] else (value, old)
            longer[..., : shorter.shape[-1]] += shorter
            value = longer
        self._sums[name] = value
        self._counts[name] = self._counts.get(name, 0) + count

    def add_moments(self, rows: Tensor) -> None:
        """Add rows ``[..., N, n]`` to ``mean`` ``[..., n]`` and ``second`` ``[..., n, n]``."""
        rows = wide(rows)
        self.add("mean", rows.sum(-2), rows.shape[-2])
        self.add("second", rows.transpose(-1, -2) @ rows, rows.shape[-2])

    def pool(self, team: Team) -> None:
        """Take in what the other processes saw."""
        for name, total in self._sums.items():
            self._sums[name] = team.sum(total)
            self._counts[name] = int(team.sum(torch.tensor(self._counts[name], device=total.device)))

    def result(self) -> Mapping[str, Tensor]:
        """The means, on the CPU."""
        assert self._sums, "a moment of nothing: no batch was seen"
        return {name: (total / self._counts[name]).cpu() for name, total in self._sums.items()}


class QueryCollector(MeanCollector):
    """``mean`` ``[H, d]`` and ``second`` ``[H, d, d]`` of queries."""

    def update(self, probe: Probe) -> None:
        """Take one batch in."""
        self.add_moments(probe.query.transpose(0, 1).flatten(1, 2))


class KeyCollector(MeanCollector):
    """``mean`` ``[G d]`` and ``second`` ``[G d, G d]`` of keys, all heads side by side."""

    def update(self, probe: Probe) -> None:
        """Take one batch in."""
        self.add_moments(_side_by_side(probe.key).flatten(0, 1))


class DistanceCollector(MeanCollector):
    """``attention`` ``[H, T]``: mean attention by distance."""

    def update(self, probe: Probe) -> None:
        """Take one batch in."""
        batch, _, tokens, _ = probe.probabilities.shape
        attended = probe.probabilities.sum(0)  # [H, T, T]
        attended[..., 0] = 0.0
        # Read as T - 1 rows of T + 1 from the second value on, distance t - s stands in column T - (t - s); what comes
        # from the row before has not been seen there, and is zero.  The first row has nothing but the first token.
        skewed = attended.flatten(1)[:, 1:].view(len(attended), tokens - 1, tokens + 1)
        self.add("attention", wide(skewed.sum(1)[:, 1:].flip(-1)), batch)

    def result(self) -> Mapping[str, Tensor]:
        """Rows sum to one; a head that only ever attends to the first token has zeros."""
        total = super().result()["attention"]
        return {"attention": total / total.sum(-1, keepdim=True).clamp_min(torch.finfo(total.dtype).tiny)}


class AttendedKeyCollector(MeanCollector):
    """``covariance`` ``[G d, G d]`` of keys under attention."""

    def update(self, probe: Probe) -> None:
        """Take one batch in."""
        key = _side_by_side(probe.key)  # [B, T, G d]
        weight = probe.probabilities.sum((1, 2))  # [B, T]: how much each token is attended to
        token = wide(key).flatten(0, 1)
        spread = token.T @ (wide(weight).flatten()[:, None] * token)
        for centre in map(wide, _mixtures(probe.probabilities, key)):
            spread -= centre.T @ centre
        self.add("covariance", spread, probe.probabilities.shape[:3].numel())


class AttendedValueCollector(MeanCollector):
    """``mean`` ``[G d]`` and ``second`` ``[G d, G d]`` of values as attention mixes them."""

    def update(self, probe: Probe) -> None:
        """Take one batch in."""
        for mixture in _mixtures(probe.probabilities, _side_by_side(probe.value)):
            self.add_moments(mixture)


class KeyValueCollector(MeanCollector):
    """Joint moments of keys and values ``u`` ``[n]``, ``n = 2 G d``."""

    def update(self, probe: Probe) -> None:
        """Take one batch in, a sequence at a time."""
        both = _side_by_side(torch.cat([probe.key, probe.value], dim=1))  # [B, T, n]
        share = probe.query.shape[1] // probe.value.shape[1]
        for u, probabilities, value in zip(both, probe.probabilities, probe.value, strict=True):
            token, received = wide(u), wide(probabilities.sum((0, 1)))  # [T, n], [T]
            self.add("token_mean", token.sum(0), len(token))
            self.add("token_second", token.T @ token, len(token))
            for mixture in map(wide, _mixtures(probabilities[None], u[None])):
                self.add("attended_mean", mixture.sum(0), len(mixture))
                self.add("attended_second", mixture.T @ mixture, len(mixture))
            self.add("spread", token.T @ (received[:, None] * token), probabilities.shape[:2].numel())
            self.add("noise", _noise(probabilities, value.repeat_interleave(share, dim=0)), len(token))

    def result(self) -> Mapping[str, Tensor]:
        """The moments; the spread is about what attention mixes."""
        means = super().result()
        return {**means, "spread": means["spread"] - means["attended_second"]}


def _side_by_side(x: Tensor) -> Tensor:
    """``[B, G, T, d] -> [B, T, G d]``."""
    return x.transpose(1, 2).flatten(2)


def _mixtures(probabilities: Tensor, rows: Tensor) -> Iterator[Tensor]:
    """What attention ``[B, H, T, T]`` makes of ``[B, T, n]``, some queries after the others: ``[B H t, n]``.

    Tokens that none of them sees are left out, which is half of the work.
    """
    tokens = probabilities.shape[-1]
    for first in range(0, tokens, QUERIES):
        last = min(first + QUERIES, tokens)
        yield (probabilities[:, :, first:last, :last].flatten(1, 2) @ rows[:, :last]).flatten(0, 1)


def _noise(probabilities: Tensor, value: Tensor) -> Tensor:
    """``sum_ts p^2 (v_s - y_t)(v_s - y_t)^T`` of each head: ``[H, T, T]``, ``[H, T, d]`` -> ``[H, d, d]``."""
    squared = probabilities.square()
    v, y = wide(value), wide(probabilities @ value)
    cross = wide(squared @ value).transpose(1, 2) @ y
    own = v.transpose(1, 2) @ (wide(squared.sum(1))[..., None] * v)
    mean = y.transpose(1, 2) @ (wide(squared.sum(2))[..., None] * y)
    return own - cross - cross.transpose(1, 2) + mean
