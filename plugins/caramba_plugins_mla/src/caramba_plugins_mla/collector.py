"""The collectors of joint moments of keys and values, and of what they are made of.

Axes: B batch, T tokens, D width of the residual stream, H query heads, G key/value heads, d width of a head; n = 2 G d.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from caramba_plugins_standard.probing import Probe
from caramba_plugins_upcycle.moments.collectors import MeanCollector, wide
from torch import Tensor

__all__ = ["InputCollector", "KeyValueCollector"]


class InputCollector(MeanCollector):
    """What :class:`~caramba_plugins_mla.transplant.InputMoments` names."""

    def update(self, probe: Probe) -> None:
        """Take one batch in."""
        received = wide(probe.probabilities.mean(1).sum(1)).flatten()  # [B T], 1 on average
        x = wide(probe.x).flatten(0, 1)
        weighed = ((1 + received) / 2)[:, None] * x
        self.add("mean", weighed.sum(0), len(x))
        self.add("second", weighed.T @ x, len(x))


class KeyValueCollector(MeanCollector):
    """What :class:`~caramba_plugins_mla.transplant.KeyValueMoments` names."""

    def update(self, probe: Probe) -> None:
        """Take one batch in, a sequence at a time."""
        both = torch.cat([probe.key, probe.value], dim=1).transpose(1, 2).flatten(2)  # [B, T, n]
        share = probe.query.shape[1] // probe.value.shape[1]
        for u, probabilities, value in zip(both, probe.probabilities, probe.value, strict=True):
            token, mixture = wide(u), wide(probabilities.flatten(0, 1) @ u)  # [T, n], [H T, n]
            received = wide(probabilities.sum((0, 1)))
            self.add("token_mean", token.sum(0), len(token))
            self.add("token_second", token.T @ token, len(token))
            self.add("attended_mean", mixture.sum(0), len(mixture))
            self.add("attended_second", mixture.T @ mixture, len(mixture))
            self.add("spread", token.T @ (received[:, None] * token), len(mixture))
            self.add("noise", _noise(probabilities, value.repeat_interleave(share, dim=0)), len(token))

    def result(self) -> Mapping[str, Tensor]:
        """The moments; the spread is about what attention mixes."""
        means = super().result()
        return {**means, "spread": means["spread"] - means["attended_second"]}


def _noise(probabilities: Tensor, value: Tensor) -> Tensor:
    """``sum_ts p^2 (v_s - y_t)(v_s - y_t)^T`` of each head: ``[H, T, T]``, ``[H, T, d]`` -> ``[H, d, d]``."""
    squared = probabilities.square()
    v, y = wide(value), wide(probabilities @ value)
    cross = wide(squared @ value).transpose(1, 2) @ y
    own = v.transpose(1, 2) @ (wide(squared.sum(1))[..., None] * v)
    mean = y.transpose(1, 2) @ (wide(squared.sum(2))[..., None] * y)
    return own - cross - cross.transpose(1, 2) + mean
