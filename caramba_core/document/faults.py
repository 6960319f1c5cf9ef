"""What structuring finds wrong, by path: places are added later, where the tree is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import attrs

from caramba_core.document.problem import ManifestProblem, Path
from caramba_core.document.source import TextSpan

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

    @classmethod
    def of(cls, error: Any, *path: str | int) -> Fault:
        """What an error says, a :class:`CarambaError` or an :class:`InvalidValue`, of a value at a path."""
        return cls(path=path, message=error.message, expected=error.expected, hint=error.hint)

    def located(self, span: TextSpan, notes: tuple[str, ...] = ()) -> ManifestProblem:
        """The problem with a value that stands there."""
        return span.problem(
            self.message, path=self.path, found=self.found, expected=self.expected, hint=self.hint, notes=notes
        )


class Faults(Exception):  # noqa: N818 - never leaves this package
    """A value could not be made; without faults, because of a problem that is reported already."""

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        super().__init__(f"{len(self.faults)} faults")

    def below(self, *parts: str | int) -> Sequence[Fault]:
        """The same faults, seen from a value that holds the faulty one under ``parts``."""
        return [attrs.evolve(fault, path=(*parts, *fault.path)) for fault in self.faults]
