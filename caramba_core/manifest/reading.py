"""What one reading of a manifest shares: the problems found so far, and bounds on what it may expand to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import attrs

from caramba_core.manifest.problem import ManifestProblem
from caramba_core.manifest.source import Broken, TextSpan

__all__ = ["Budget", "Reading", "Report"]

_MOST_PROBLEMS: Final = 200
_MOST_WRITTEN: Final = 50_000
_MOST_EXPANDED: Final = 200_000


class Report(list[ManifestProblem]):
    """The problems of a manifest, up to a number that a person might still read; the rest is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.left_out = 0

    def append(self, problem: ManifestProblem) -> None:
        """Add a problem, or count it."""
        if len(self) < _MOST_PROBLEMS:
            super().append(problem)
        else:
            self.left_out += 1

    def extend(self, problems: Iterable[ManifestProblem]) -> None:
        """Add several."""
        for problem in problems:
            self.append(problem)


@attrs.define
class Budget:
    """A bound on the number of values."""

    most: int
    spent: int = 0

    def spend(self, size: int, span: TextSpan) -> None:
        """Take ``size`` values; raises :class:`~caramba_core.manifest.source.Broken` where that is too many."""
        self.spent += size
        if self.spent > self.most:
            raise Broken(
                span.problem(
                    f"the manifest expands to more than {self.most} values here",
                    hint="write layers that are alike once, with repeat:",
                )
            )


@attrs.define
class Reading:
    """``written`` bounds what texts hold, aliases and merges expanded; ``expanded`` what variables and groups add."""

    problems: Report = attrs.field(factory=Report)
    written: Budget = attrs.field(factory=lambda: Budget(_MOST_WRITTEN))
    expanded: Budget = attrs.field(factory=lambda: Budget(_MOST_EXPANDED))
