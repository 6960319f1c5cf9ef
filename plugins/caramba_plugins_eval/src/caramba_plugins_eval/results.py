"""Measuring a list of metrics, and their figures as data and as tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, geometric_mean
from typing import TYPE_CHECKING, Any

from caramba_terminal.numbers import format_bytes

from caramba_core.errors import InputError, NumericalStop
from caramba_core.hookspecs import Section
from caramba_plugins_eval.metric import Figure

if TYPE_CHECKING:
    from caramba_plugins_eval.metric import Metric
    from caramba_plugins_eval.subject import Subject

__all__ = ["figure_section", "measure_all", "require_names"]


def require_names(metrics: Sequence[Metric]) -> None:
    """Raise :class:`InputError` where two metrics would give figures of one name."""
    called = [metric.called for metric in metrics]
    twice = [name for name in dict.fromkeys(called) if called.count(name) > 1]
    if twice:
        raise InputError(f"two metrics are called {twice[0]}", hint="give one of them a name:")


def measure_all(
    metrics: Sequence[Metric],
    subject: Subject,
    *,
    known: Mapping[str, Mapping[str, Any]] | None = None,
    between: Callable[[str, Mapping[str, Any]], None] = lambda key, figures: None,
) -> dict[str, Any]:
    """The figures of every metric as plain data: ``{"agreement.kl": {"value", "unit", "interval_95"}, ...}``.

    Where the subject has several texts, those of metrics that read tokens are ``agreement.kl@NAME`` of each,
    ``agreement.kl@mean`` (the geometric one of perplexities and their ratios) and ``agreement.kl@worst``.

    All of them are checked before any is measured.  ``known`` holds those that need not be measured again, by
    the ``key`` that ``between`` is told behind each.
    """
    from caramba_core.nn.build import load_object

    require_names(metrics)
    on = {name: subject.on(name) for name in subject.texts}
    for metric in metrics:
        for one in on.values() if on and "data" in metric.needs else [subject]:
            one.require(metric)
    found: dict[str, Any] = {}
    for metric in metrics:
        key = f"{metric.called}: {metric!r}"
        figures = dict((known or {}).get(key, {}))
        if not figures:
            measure = load_object(metric.builds)
            if on and "data" in metric.needs:
                measured = _over_texts({name: measure(metric, one) for name, one in on.items()})
            else:
                measured = measure(metric, subject)
            for name, figure in measured.items():
                if not math.isfinite(figure.value):
                    raise NumericalStop(f"{metric.called}.{name} is {figure.value}, which is no measurement")
                interval = None if figure.interval is None else list(figure.interval)
                figures[f"{metric.called}.{name}"] = {
                    "value": figure.value,
                    "unit": figure.unit,
                    "interval_95": interval,
                }
            between(key, figures)
        found |= figures
    return found


def _over_texts(measured: Mapping[str, Mapping[str, Figure]]) -> dict[str, Figure]:
    """Each figure of each text, their mean over texts, and the worst with its interval."""
    found: dict[str, Figure] = {}
    for figure in dict.fromkeys(name for figures in measured.values() for name in figures):
        by_text = {text: figures[figure] for text, figures in measured.items() if figure in figures}
        found |= {f"{figure}@{text}": one for text, one in by_text.items()}
        ones = list(by_text.values())
        mean = (geometric_mean if ones[0].geometric else fmean)([one.value for one in ones])
        found[f"{figure}@mean"] = Figure(value=mean, unit=ones[0].unit)
        worst = max if ones[0].worse == "larger" else min
        found[f"{figure}@worst"] = worst(ones, key=lambda one: one.value)
    return found


def figure_section(figures: Mapping[str, Mapping[str, Any]]) -> Section:
    """The figures as a table."""
    rows = tuple((name, *_shown(figure)) for name, figure in figures.items())
    return Section(title="metrics", columns=("metric", "value", "95 % interval", "unit"), rows=rows)


def _shown(figure: Mapping[str, Any]) -> tuple[str, str, str]:
    """Value, interval and unit in words; the interval's bounds have as many digits as the value."""
    value, unit, interval = figure["value"], figure["unit"], figure["interval_95"]
    if unit == "bytes":
        return format_bytes(value), "", ""
    digits = 1 if abs(value) >= 1000 else 2 if abs(value) >= 100 else 3 if abs(value) >= 1 else 4
    bounds = "" if interval is None else " to ".join(f"{bound:,.{digits}f}" for bound in interval)
    return f"{value:,.{digits}f}", bounds, unit
