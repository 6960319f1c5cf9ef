"""The one family of errors that a user can cause, and the exit code of each.

    CarambaError                 2   anything the user can repair
    ├── ManifestError            2   the manifest: every problem found, each with its place
    ├── Faults                   2   values or a model that cannot be, by path
    ├── InputError               2   a file, checkpoint, token array or device that cannot be used
    ├── PluginError              2   a plugin that is missing, broken or incompatible
    ├── VerificationFailed       3   a ``verify:`` threshold was not met
    ├── NumericalStop            4   a loss, gradient or weight that is no longer finite
    └── ResourceExhausted        5   out of memory or out of disk

Broken internal invariants are ``assert`` statements and end with exit code 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # import caramba, which names errors, imports nothing but them
    from caramba_document.problem import Fault, ManifestProblem

__all__ = [
    "CarambaError",
    "Faults",
    "InputError",
    "InvalidValue",
    "ManifestError",
    "NumericalStop",
    "PluginError",
    "ResourceExhausted",
    "VerificationFailed",
]


class CarambaError(Exception):
    """A failure that the user can understand and repair.

    ``message`` says what was found where; ``expected`` what would have been right; ``hint`` how to get there.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, expected: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.expected = expected
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.message]
        if self.expected is not None:
            parts.append(f"  expected: {self.expected}")
        if self.hint is not None:
            parts.append(f"  hint: {self.hint}")
        return "\n".join(parts)


class ManifestError(CarambaError):
    """Everything that is wrong with a manifest, in the order of the file."""

    def __init__(self, problems: tuple[ManifestProblem, ...]) -> None:
        assert problems, "a ManifestError needs at least one problem"
        self.problems = problems
        super().__init__("\n\n".join(problem.render() for problem in problems))


class Faults(CarambaError):
    """What is wrong with values or with a model, by path; places in a manifest's text are found later.

    Without any fault, a value could not be made because of a problem that is reported already.
    """

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        super().__init__("\n".join(map(str, faults)))

    def below(self, *parts: str | int) -> Sequence[Fault]:
        """The same faults, seen from a value that holds the faulty one under ``parts``."""
        return [fault.below(*parts) for fault in self.faults]


class InputError(CarambaError):
    """A file, checkpoint, token array, device or folder that cannot be used as asked."""


class PluginError(CarambaError):
    """A plugin that is missing, broken, ambiguous or made for another version of the core."""


class VerificationFailed(CarambaError):
    """A threshold under ``verify:`` was not met; the artifacts of the run are kept."""

    exit_code = 3


class NumericalStop(CarambaError):
    """A loss, gradient or weight stopped being finite; the last good checkpoint is kept."""

    exit_code = 4


class ResourceExhausted(CarambaError):
    """Memory or disk ran out; what had been published stays whole."""

    exit_code = 5


class InvalidValue(ValueError):
    """Raised by component configs: one field's value breaks a rule.

    The manifest reader turns it into a :class:`ManifestError` that points at the field; ``field`` is the attribute's
    name, or ``None`` where the rule is about the component as a whole.  ``within`` leads from the field's value to the
    part at fault: ``("attention.window", 3)`` inside ``each``.
    """

    def __init__(
        self,
        field: str | None,
        message: str,
        *,
        expected: str | None = None,
        hint: str | None = None,
        within: tuple[str | int, ...] = (),
    ) -> None:
        super().__init__(message if field is None else f"{field}: {message}")
        self.field = field
        self.message = message
        self.expected = expected
        self.hint = hint
        self.within = within
