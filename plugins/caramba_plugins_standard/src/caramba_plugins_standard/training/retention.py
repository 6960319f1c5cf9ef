"""Which checkpoints of a run stay: its last ones, those of round steps, and that of its best measurement, which may be
the run's result and end it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from caramba_core.run.directory import step_of
from caramba_plugins_standard.training import Keep

__all__ = ["Retention"]


class Retention:
    """What ``keep:`` and ``patience:`` ask for.

    ``lines`` are those of ``metrics.jsonl``, ``measured`` says which can be compared.
    """

    def __init__(
        self, keep: Keep, lines: Iterable[dict[str, Any]], measured: object, patience: int | None = None
    ) -> None:
        self.keep = keep
        self.patience = patience
        self._keeps_best = keep.best is not None or patience is not None
        self._figures = {
            line["step"]: line["perplexity"]
            for line in lines
            if "perplexity" in line and line.get("measured") == measured
        }

    def measured(self, step: int, perplexity: float) -> None:
        """Take note of a measurement."""
        self._figures[step] = perplexity

    @property
    def stop_reason(self) -> str | None:
        """Why the run is to end, in words: too many measurements since the best one; ``None`` where it goes on."""
        best = self._best()
        if self.patience is None or best is None or sum(step > best for step in self._figures) < self.patience:
            return None
        return (
            f"perplexity has not fallen below {self._figures[best]:.4f} of step {best:,} in {self.patience} evaluations"
        )

    def result(self, checkpoints: Sequence[Path]) -> Path | None:
        """The checkpoint of the best measurement where it is to be the run's result, not the last one."""
        steps = {step: path for path in checkpoints if (step := step_of(path)) is not None}
        best = None if self.patience is None else self._best(steps)
        return None if best is None or best == max(steps) else steps[best]

    def wants(self, step: int) -> bool:
        """Whether a step that was just done is one whose checkpoint stays, so that it has to be saved."""
        every = self.keep.every
        return (every is not None and step % every == 0) or (self._keeps_best and step == self._best())

    def kept(self, checkpoints: Sequence[Path]) -> list[Path]:
        """Those of a run's checkpoints, oldest first, that stay."""
        steps = {step: path for path in checkpoints if (step := step_of(path)) is not None}
        wanted = {*list(steps)[-self.keep.last :]}
        if self.keep.every is not None:
            wanted |= {step for step in steps if step % self.keep.every == 0}
        if self._keeps_best and (best := self._best(steps)) is not None:
            wanted.add(best)
        return [path for step, path in steps.items() if step in wanted]

    def _best(self, among: Iterable[int] | None = None) -> int | None:
        """The step of the lowest perplexity, the first of several."""
        steps = sorted(self._figures if among is None else self._figures.keys() & set(among))
        return min(steps, key=self._figures.__getitem__, default=None)
