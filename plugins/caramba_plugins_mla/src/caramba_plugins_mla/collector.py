"""The collector of joint moments of keys and values.

Axes: B batch, T tokens, H query heads, G key/value heads, d width of a head; n = 2 G d.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from caramba_plugins_standard.probing import Probe
from caramba_plugins_upcycle.transplant import Moment
from torch import Tensor

from caramba_core.component import Attention

__all__ = ["KeyValueCollector"]


class KeyValueCollector:
    """Sums in float64 of what :class:`~caramba_plugins_mla.moments.KeyValueMoments` names."""

    def __init__(self, config: Moment, source: Attention, width: int) -> None:
        self._sums: dict[str, Tensor] = {}
        self._tokens = 0
        self._queries = 0

    def update(self, probe: Probe) -> None:
        """Take one batch in, a sequence at a time."""
        both = torch.cat([probe.key, probe.value], dim=1).transpose(1, 2).flatten(2)  # [B, T, n]
        share = probe.query.shape[1] // probe.value.shape[1]
        for u, probabilities, value in zip(both, probe.probabilities, probe.value, strict=True):
            wide = _wide(u)
            mixture = _wide(probabilities.flatten(0, 1) @ u)  # [H T, n]
            received = _wide(probabilities.sum((0, 1)))
            self._add("token_mean", wide.sum(0))
            self._add("token_second", wide.T @ wide)
            self._add("attended_mean", mixture.sum(0))
            self._add("attended_second", mixture.T @ mixture)
            self._add("received", wide.T @ (received[:, None] * wide))
            self._add("noise", _noise(probabilities, value.repeat_interleave(share, dim=0)))
            self._tokens += u.shape[0]
            self._queries += mixture.shape[0]

    def result(self) -> Mapping[str, Tensor]:
        """The moments, on the CPU."""
        assert self._tokens, "a moment of nothing: no batch was seen"
        sums = {name: total.cpu() for name, total in self._sums.items()}
        attended = sums["attended_second"] / self._queries
        return {
            "token_mean": sums["token_mean"] / self._tokens,
            "token_second": sums["token_second"] / self._tokens,
            "attended_mean": sums["attended_mean"] / self._queries,
            "attended_second": attended,
            "spread": sums["received"] / self._queries - attended,
            "noise": sums["noise"] / self._tokens,
        }

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value


def _noise(probabilities: Tensor, value: Tensor) -> Tensor:
    """``sum_ts p^2 (v_s - y_t)(v_s - y_t)^T`` of each head: ``[H, T, T]``, ``[H, T, d]`` -> ``[H, d, d]``."""
    squared = probabilities.square()
    v, y = _wide(value), _wide(probabilities @ value)
    cross = _wide(squared @ value).transpose(1, 2) @ y
    own = v.transpose(1, 2) @ (_wide(squared.sum(1))[..., None] * v)
    mean = y.transpose(1, 2) @ (_wide(squared.sum(2))[..., None] * y)
    return own - cross - cross.transpose(1, 2) + mean


def _wide(x: Tensor) -> Tensor:
    """Float64; on the CPU where the device has none."""
    return x.cpu().double() if x.device.type == "mps" else x.double()
