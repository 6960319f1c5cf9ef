"""Mode ``eval`` (configs; light)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from caramba_document.suggestions import unknown
from caramba_plugins_standard.datasets import Texts

from caramba_core.components import component, option
from caramba_core.errors import InvalidValue
from caramba_core.modes import Data, Need, Run, Teacher, Verify
from caramba_plugins_eval.metric import Metric

__all__ = ["Evaluate", "Thresholds"]


@component
class Thresholds(Verify):
    """Thresholds of a run that measures metrics, by the names of their figures; a miss ends with exit code 3."""

    at_most: dict[str, float] = option(factory=dict, help="figures of metrics, and the largest that each may be")
    at_least: dict[str, float] = option(factory=dict, help="figures of metrics, and the smallest that each may be")

    def judged(self, summary: Mapping[str, Any]) -> Iterator[tuple[str, float | None, bool]]:
        """Those of figures behind that of the perplexity; one that was not measured is missed."""
        yield from super().judged(summary)
        for words, bounds, sign in (("most", self.at_most, 1.0), ("least", self.at_least, -1.0)):
            for name, bound in bounds.items():
                found = summary.get("metrics", {}).get(name, {}).get("value")
                met = found is not None and sign * found <= sign * bound
                yield f"{name} at {words} {bound:g}", found, met

    def check(self, metrics: tuple[Metric, ...], texts: tuple[str, ...] = ()) -> None:
        """Raise :class:`InvalidValue` for a figure that none of the metrics gives, on these texts if several."""
        given = {metric.called: metric.figures() for metric in metrics}
        of = {
            metric.called: [f"@{text}" for text in (*texts, "mean", "worst")]
            if texts and "data" in metric.needs
            else [""]
            for metric in metrics
        }
        known = [f"{called}.{name}{at}" for called, names in given.items() for name in names or () for at in of[called]]
        for key in ("at_most", "at_least"):
            for name in getattr(self, key):
                if name in known or given.get(name.partition(".")[0], ()) is None:
                    continue
                right = "a figure of a metric: {}" if given else "a figure of a metric; the run measures none"
                message, expected = unknown(f"there is no figure {name!r}", name, known, right)
                raise InvalidValue("verify", message, expected=expected, within=(key, name))


@component
class Evaluate(Run):
    """Measure a run's result, or the teacher where there is none, on the held-out tokens, and metrics of it."""

    builds: ClassVar[str] = "caramba_plugins_eval.runner:EvaluateRunner"
    needs: ClassVar[frozenset[Need]] = frozenset({"data.heldout", "weights"})
    heeds_evaluation: ClassVar[bool] = True

    metrics: tuple[Metric, ...] = option(default=(), help="what is measured beside perplexity as eval: says")
    verify: Thresholds | None = option(default=None, help="what must hold at the end")

    def check(self, teacher: Teacher | None, data: Data) -> None:
        """Metrics have what they need, and names of their own; thresholds are of figures that there are."""
        called: dict[str, int] = {}
        for index, metric in enumerate(self.metrics):
            name = metric.called
            if called.setdefault(name, index) != index:
                message = f"metric {called[name]} is called {name}, too"
                raise InvalidValue("metrics", message, hint="give one of them a name:", within=(index,))
            for need in ("teacher", "tokenizer"):
                if need in metric.needs and teacher is None:
                    message = f"{name} needs a {need}, and the group has no teacher"
                    raise InvalidValue(
                        "metrics", message, hint="add teacher: {source: ...} to the group", within=(index,)
                    )
        if self.verify is not None:
            texts = tuple(data.heldout.parts) if isinstance(data.heldout, Texts) else ()
            self.verify.check(self.metrics, texts if len(texts) > 1 else ())
