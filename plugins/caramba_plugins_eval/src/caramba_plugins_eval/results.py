"""Measuring a list of metrics, and their figures as data and as tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from caramba_terminal.numbers import format_bytes

from caramba_core.errors import InputError, NumericalStop
from caramba_core.hookspecs import Section

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

    All of them are checked before any is measured.  ``known`` holds those that need not be measured again, by
    the ``key`` that ``between`` is told behind each.
    """
    from caramba_core.nn.build import load_object

    require_names(metrics)
    for metric in metrics:
        subject.require(metric)
    found: dict[str, Any] = {}
    for metric in metrics:
        key = f"{metric.called}: {metric!r}"
        figures = dict((known or {}).get(key, {}))
        if not figures:
            for name, figure in load_object(metric.builds)(metric, subject).items():
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
