"""What every step of a start reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from caramba_plugins_upcycle.transplant import Calibrated
from torch import Tensor

from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.start.rotation import Rotation

__all__ = ["StartCase"]


@attrs.frozen(kw_only=True, eq=False)
class StartCase:
    """One attention that is started, by the transplant's settings; each step adds what it left out to ``report``.

    ``pairs`` are of shared keys, ``key_price`` of joint latents.
    """

    source: Calibrated
    target: DecoupledBottleneckAttention
    selection: str = "rotation"
    fold: str = "none"
    pairs: Sequence[int] | None = None
    key_price: float = 1.0
    report: dict[str, Any] = attrs.field(factory=dict)
    rotation: Rotation = attrs.field(init=False)

    @rotation.default
    def _rotation(self) -> Rotation:
        return Rotation.of(self.source.config, self.source.moments, self.fold)

    @property
    def moments(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Those of the source."""
        return self.source.moments
