"""What structuring finds wrong, by path: places are added later, where the tree is at hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import attrs

from caramba_core.document.problem import Path

__all__ = ["Fault", "Faults"]


@attrs.frozen(kw_only=True)
class Fault:
    """One thing wrong at a path; ``at`` says whether to point at the value, or at its key.

    A path that leads to something that is not there points at what lacks it.
    """

    path: Path = ()
    message: str
    at: Literal["value", "key"] = "value"
    found: str | None = None
    expected: str | None = None
    hint: str | None = None


class Faults(Exception):  # noqa: N818 - never leaves this package
    """A value could not be made; without faults, because of a problem that is reported already."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self.faults = tuple(faults)
        super().__init__(f"{len(self.faults)} faults")

    def below(self, *parts: str | int) -> Sequence[Fault]:
        """The same faults, seen from a value that holds the faulty one under ``parts``."""
        return [attrs.evolve(fault, path=(*parts, *fault.path)) for fault in self.faults]
