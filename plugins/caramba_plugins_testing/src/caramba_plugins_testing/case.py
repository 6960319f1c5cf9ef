"""A component with settings, what a check of it is, and how one fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import attrs

from caramba_core.components import Attention, Layer, Topology

__all__ = ["CHECKS", "Case", "Check", "CheckFailed", "about", "check", "require"]


class CheckFailed(AssertionError):  # noqa: N818 - a result, not a fault of the kit
    """A component does not hold to its contract; the message says where, by how much, and what the contract is."""


def require(holds: object, message: str) -> None:
    """Raise :class:`CheckFailed` with the message unless something holds."""
    if not holds:
        raise CheckFailed(message)


@contextmanager
def about(name: str) -> Iterator[None]:
    """Say in front of what fails inside what it is about."""
    try:
        yield
    except CheckFailed as failed:
        raise CheckFailed(f"{name}: {failed}") from failed.__cause__


@attrs.frozen(kw_only=True)
class Case:
    """One component with settings.

    ``config`` gets inputs of ``width``.  ``tokens`` is the length of the sequences tried: more than any window.
    ``relative`` claims that only distances between tokens count, not where the sequence starts.  ``bad`` are changes of
    fields, and ``bad_widths`` input widths, that the config must refuse by name.  ``decoding_tolerance`` bounds the
    difference between cached decoding and the full pass in float64, relative to the largest output; raise it only for
    a cache that rounds.  ``drift`` bounds the error of bfloat16 as a part of the output's root mean square.
    """

    config: Layer
    width: int = 32
    name: str = attrs.field(default=attrs.Factory(lambda self: type(self.config).__name__, takes_self=True))
    tokens: int = 12
    relative: bool = False
    bad: tuple[Mapping[str, Any], ...] = ()
    bad_widths: tuple[int, ...] = ()
    decoding_tolerance: float = 1e-9
    drift: float = 0.03

    @property
    def is_attention(self) -> bool:
        """Whether the component mixes tokens itself."""
        return isinstance(self.config, Attention)

    @property
    def is_topology(self) -> bool:
        """Whether the component is made of others."""
        return isinstance(self.config, Topology)


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
