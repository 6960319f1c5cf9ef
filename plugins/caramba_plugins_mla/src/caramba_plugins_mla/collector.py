"""The collector of what keys and values are made of."""

from __future__ import annotations

from caramba_plugins_standard.probing import Probe
from caramba_plugins_upcycle.moments.collectors import MeanCollector, wide

__all__ = ["InputCollector"]


class InputCollector(MeanCollector):
    """What :class:`~caramba_plugins_mla.transplant.InputMoments` names."""

    def update(self, probe: Probe) -> None:
        """Take one batch in."""
        received = wide(probe.probabilities.mean(1).sum(1)).flatten()  # [B T], 1 on average
        x = wide(probe.x).flatten(0, 1)
        weighed = ((1 + received) / 2)[:, None] * x
        self.add("mean", weighed.sum(0), len(x))
        self.add("second", weighed.T @ x, len(x))
