"""What a check is, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from caramba_plugins_testing.case import Case

__all__ = ["CHECKS", "Check", "check"]


@attrs.frozen
class Check:
    """One thing that components must hold to.

    ``run`` raises :class:`~caramba_plugins_testing.CheckFailed`; ``applies`` says to which cases the check has meaning.
    """

    name: str
    summary: str
    applies: Callable[[Case], bool]
    run: Callable[[Case], None]


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
