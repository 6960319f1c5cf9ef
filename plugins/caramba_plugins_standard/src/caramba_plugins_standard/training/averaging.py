"""A running mean of the weights that train, which is the result of a run in their place.

With decay ``d``, behind ``n`` steps it is ``sum_i d^(n - i) w_i`` over ``sum_i d^(n - i)``: the weights that training
began with have no share in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from caramba_core.run.checkpoint import load_tensors
from caramba_plugins_standard.parallel.shards import divided_as, own_part

__all__ = ["WeightAverage"]

_FILE: Final = "trained"
"""Of a checkpoint, whose model is the mean: the weights that training goes on with."""


class WeightAverage:
    """The mean of named ``parameters``, each in its own type; ``state`` and ``checkpoint`` are those of a run that goes
    on, whose parameters have the mean's values then.  Of parameters that processes divide, each has its part.
    """

    def __init__(
        self,
        parameters: Sequence[tuple[str, nn.Parameter]],
        decay: float,
        state: Mapping[str, Any],
        checkpoint: Path | None,
    ) -> None:
        self._decay = decay
        self._names = [name for name, _ in parameters]
        self._parameters: list[Tensor] = [parameter.detach() for _, parameter in parameters]
        self._others = [parameter.clone() for parameter in self._parameters]
        self._steps = int(state.get("averaged_steps", 0))
        if checkpoint is not None:
            saved = load_tensors(checkpoint, _FILE)
            for name, parameter in zip(self._names, self._parameters, strict=True):
                own_part(parameter).copy_(own_part(divided_as(saved[name], parameter)))

    def update(self) -> None:
        """Take the weights in, behind a step."""
        self._steps += 1
        share = (1.0 - self._decay) / (1.0 - self._decay**self._steps)
        torch._foreach_lerp_(list(map(own_part, self._others)), list(map(own_part, self._parameters)), share)

    def exchange(self) -> None:
        """The mean in the place of the parameters' values, and these in its own; again, and both are as before."""
        for parameter, other in zip(map(own_part, self._parameters), map(own_part, self._others), strict=True):
            kept = parameter.clone()
            parameter.copy_(other)
            other.copy_(kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the mean's weights meanwhile."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    def tensors(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The file of a checkpoint that holds what training goes on with, while the mean is in place."""
        return {_FILE: dict(zip(self._names, self._others, strict=True))}

    def state(self) -> dict[str, Any]:
        """Scalars that a run which goes on has to know."""
        return {"averaged_steps": self._steps}
