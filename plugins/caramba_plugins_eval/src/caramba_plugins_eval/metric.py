"""Metrics: what a distribution provides that measures something of a model.

A metric is a config in ``caramba.metric``; its ``builds`` names a function that measures::

    @component
    class Sparsity(Metric):
        \"\"\"The share of weights that are zero.\"\"\"

        builds: ClassVar[str] = "my_package.sparsity:measure"

        def figures(self) -> tuple[str, ...]:
            return ("zeros",)

    def measure(metric: Sparsity, subject: Subject) -> dict[str, Figure]:
        zeros = sum(int((weight == 0).sum()) for weight in subject.model.parameters())
        count = sum(weight.numel() for weight in subject.model.parameters())
        return {"zeros": Figure(value=zeros / count)}

Its figure is called ``sparsity.zeros`` then: in results, in reports and under ``verify:``.  Reading and checking a
manifest import no torch: a config's module must not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import attrs

from caramba_core.components import Component, component, option
from caramba_core.plugins.registry import registry

if TYPE_CHECKING:
    from caramba_plugins_eval.subject import Subject

__all__ = ["Figure", "Metric", "Needed"]

Needed = Literal["data", "teacher", "tokenizer"]


@attrs.frozen(kw_only=True)
class Figure:
    """A number that was measured, its unit, and the interval that it lies in with 95 % confidence, where known.

    ``worse`` says which of two figures is the worse one, so that several texts have a worst; ``geometric`` that their
    mean is the geometric one, as of what is a power itself.
    """

    value: float
    unit: str = ""
    interval: tuple[float, float] | None = None
    worse: Literal["larger", "smaller"] = "larger"
    geometric: bool = False


@component
class Metric(Component):
    """What is measured of a model; ``builds`` is a function ``(metric, subject: Subject) -> {name: Figure}``."""

    kind: ClassVar[str] = "metric"
    needs: ClassVar[frozenset[Needed]] = frozenset()
    """What a subject must have for it: held-out tokens, a teacher, a tokenizer."""

    name: str | None = option(
        default=None,
        help="what its figures are called; its type if not given",
        pattern=r"[A-Za-z0-9_][A-Za-z0-9_-]*",
        form="letters, digits, _ and -",
    )

    @property
    def called(self) -> str:
        """What stands before the names of its figures."""
        return self.name or registry().name_of(type(self))

    def figures(self) -> tuple[str, ...] | None:
        """The names of its figures, where they are known before they are measured; ``verify:`` is checked by them."""
        return None

    def check(self, subject: Subject) -> None:
        """Raise :class:`~caramba_core.errors.InputError` for what would stop it later; nothing is measured yet."""
