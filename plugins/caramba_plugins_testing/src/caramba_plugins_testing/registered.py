"""What a check is, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from caramba_plugins_testing.case import Case, about

__all__ = ["CHECKS", "Check", "check"]


@attrs.frozen
class Check:
    """One thing that components must hold to; ``applies`` says to which cases it has meaning."""

    name: str
    summary: str
    applies: Callable[[Case], bool]
    function: Callable[[Case], None]

    def run(self, case: Case) -> None:
        """Check a case; raises :class:`~caramba_plugins_testing.CheckFailed`."""
        with about(case.name):
            self.function(case)


CHECKS: Final[dict[str, Check]] = {}
"""Every check by its name, in the order in which they are worth reading."""


def check(
    summary: str, *, applies: Callable[[Case], bool] = lambda case: True
) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Register a function as a check, under its own name."""

    def register(run: Callable[[Case], None]) -> Callable[[Case], None]:
        CHECKS[run.__name__] = Check(run.__name__, summary, applies, run)
        return run

    return register
