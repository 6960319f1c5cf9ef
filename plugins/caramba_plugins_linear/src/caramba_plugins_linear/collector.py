"""The collector of whole sequences.

Axes: N sequences, H query heads, G key/value heads, T tokens, d width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from caramba_plugins_standard.probing import Probe
from caramba_plugins_upcycle.transplant import Moment
from torch import Tensor

from caramba_core.components import Attention
from caramba_plugins_linear.transplant import SequenceMoments

__all__ = ["SequenceCollector"]


class SequenceCollector:
    """Keeps the sequences of ``SequenceMoments``; those that are shorter than the first are left out."""

    def __init__(self, config: Moment, source: Attention, width: int) -> None:
        assert isinstance(config, SequenceMoments)
        self._count = config.count
        self._query: list[Tensor] = []
        self._key: list[Tensor] = []

    def update(self, probe: Probe) -> None:
        """Take one batch in, until there are enough."""
        room = self._count - sum(len(query) for query in self._query)
        if room > 0 and (not self._query or self._query[0].shape[2] == probe.query.shape[2]):
            self._query.append(_kept(probe.query[:room]))
            self._key.append(_kept(probe.key[:room]))

    def result(self) -> Mapping[str, Tensor]:
        """``query`` and ``key``, where they were made: the start looks at all pairs of their tokens."""
        assert self._query, "a moment of nothing: no batch was seen"
        return {"query": torch.cat(self._query), "key": torch.cat(self._key)}


def _kept(x: Tensor) -> Tensor:
    """Float32; on the CPU where the device has no float64, in which the start sums."""
    return x.float().cpu() if x.device.type == "mps" else x.float()
