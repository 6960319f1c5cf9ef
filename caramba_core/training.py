"""The kinds that a training run is made of: datasets, strategies, optimizers, schedules (configs; light)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import attrs

from caramba_core.component import Component, component

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    import torch
    from torch import Tensor

    from caramba_core.loading import Tokenizer
    from caramba_core.run.context import RunContext

__all__ = ["Dataset", "Optimizer", "Schedule", "StepResult", "Strategy", "StrategyRunner", "Tokens"]


@attrs.frozen(kw_only=True)
class Tokens:
    """Token ids of a dataset: a one-dimensional integer array (memory-mapped where possible).

    ``tokenizer`` is the identity of the tokenizer that made them, where known; ``origin`` names the source in messages.
    """

    ids: np.ndarray[Any, np.dtype[np.integer[Any]]]
    tokenizer: str | None
    origin: str


@component
class Dataset(Component):
    """A source of tokens."""

    builds: ClassVar[str] = ""

    def files(self) -> tuple[Path, ...]:
        """What must exist before a run starts, relative to the manifest."""
        return ()

    def open(self, folder: Path, tokenizer: Tokenizer | None) -> Tokens:
        """The tokens; paths are relative to ``folder``, texts are encoded with ``tokenizer``.

        Raises :class:`~caramba_core.errors.InputError` for anything that is not a sound token source.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define open")


@component
class Optimizer(Component):
    """How parameters move; ``builds`` is not used: :meth:`create` imports torch itself."""

    builds: ClassVar[str] = ""

    def create(self, parameters: Iterable[Mapping[str, Any]], lr: float) -> torch.optim.Optimizer:
        """The torch optimizer over parameter groups."""
        raise NotImplementedError(f"{type(self).__name__} does not define create")

    def state_values(self) -> int:
        """Values of state a trained parameter, each in the parameter's dtype (Adam: 2)."""
        raise NotImplementedError(f"{type(self).__name__} does not define state_values")

    def state_scalars(self) -> int:
        """float32 numbers of state a trained tensor (Adam: 1, its count of steps)."""
        return 0


@component
class Schedule(Component):
    """How the learning rate moves: a factor of ``lr`` for each step."""

    builds: ClassVar[str] = ""

    def factor(self, step: int, steps: int) -> float:
        """Multiplier of the learning rate at ``step`` (0-based) of ``steps``."""
        raise NotImplementedError(f"{type(self).__name__} does not define factor")


@attrs.frozen(kw_only=True)
class StepResult:
    """What one forward and backward gave: ``loss`` (detached, on the device) and ``metrics``, never synchronized."""

    loss: Tensor
    metrics: Mapping[str, Tensor] = attrs.field(factory=dict)


class StrategyRunner(Protocol):
    """What a strategy's ``builds`` makes, as ``cls(config, context)``."""

    def prepare(self) -> None:
        """Once before the first step: build what the steps need, mark what trains."""
        ...

    def step(self, tokens: Tensor) -> StepResult:
        """Forward and backward over int64 ``[B, T + 1]``; gradients accumulate, the loop moves the optimizer."""
        ...


@component
class Strategy(Component):
    """What a training step is; ``builds`` is a class ``(config, context: RunContext) -> StrategyRunner``."""

    needs_teacher: ClassVar[bool] = False
    whole_model: ClassVar[bool] = True
    """Whether a step runs backward through the whole model from its logits, or through one trained node at a time."""

    def logit_values(self, rows: int, vocab_size: int) -> int:
        """float32 values of logits, and of what is made of them, held at once in a step of ``rows`` tokens.

        For memory estimates.  This one assumes logits, their logarithms and the gradients of both, of a teacher too
        where one is needed, for as many tokens as the field ``logit_rows`` says; for all of them without such a field.
        """
        held = min(rows, getattr(self, "logit_rows", rows))
        return held * vocab_size * (8 if self.needs_teacher else 4) if self.whole_model else 0

    def start(self, context: RunContext) -> StrategyRunner:
        """The runner of this strategy."""
        from caramba_core.nn.build import load_object

        runner: StrategyRunner = load_object(self.builds)(self, context)
        return runner
