"""Steps that are left out: those whose loss or gradient is not finite, and those whose gradient is far too large."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any, Final

from caramba_plugins_standard.training import Training

__all__ = ["Skipping"]

_REMEMBERED: Final = 128
"""Steps that a gradient is compared with."""

_FEWEST: Final = 16
"""Steps before the first comparison."""


class Skipping:
    """Decides which steps move the weights; ``state`` is what :meth:`state` gave when the run was saved.

    The batch of a step that is left out counts as seen.
    """

    def __init__(self, settings: Training, state: Mapping[str, Any]) -> None:
        self.most = 0 if settings.on_nonfinite == "stop" else int(settings.on_nonfinite.removeprefix("skip "))
        self.times = settings.skip_spikes
        self.total = int(state.get("left_out", 0))
        self._row = int(state.get("left_out_in_a_row", 0))
        self._norms = deque[float](state.get("norms", ()), maxlen=_REMEMBERED)

    @property
    def judges(self) -> bool:
        """Whether a step may be left out: then its numbers are waited for before the weights move."""
        return self.most > 0 or self.times is not None

    def reason(self, values: Mapping[str, float]) -> str | None:
        """Why a step with these numbers is left out; ``None`` where it is not, also where the run has to end for it."""
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            self._row += 1
            if self._row > self.most:
                return None
            self.total += 1
            return f"{', '.join(broken)} not finite"
        self._row = 0
        norm, known = values["gradient_norm"], sorted(self._norms)
        self._norms.append(norm)  # what stays large becomes usual
        usual = median(known) if len(known) >= _FEWEST else math.inf
        if self.times is None or norm <= self.times * usual:
            return None
        self.total += 1
        return f"gradient_norm {norm:.3g} is {norm / usual:.3g} times the usual one"

    def state(self) -> dict[str, Any]:
        """What a run that goes on has to know; empty where no step is ever left out."""
        if not self.judges:
            return {}
        return {"left_out": self.total, "left_out_in_a_row": self._row, "norms": list(self._norms)}
