"""What the command ``eval`` gives, and what stays of it in a run's folder: ``eval.json``."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import attrs

from caramba_core.components import Attention
from caramba_core.errors import InputError
from caramba_core.hookspecs import Section
from caramba_core.places import regular
from caramba_core.plugins.registry import registry
from caramba_core.run.atomic import write_json
from caramba_plugins_eval.metric import Metric
from caramba_plugins_eval.mode import Thresholds
from caramba_plugins_eval.opening import Opened
from caramba_plugins_eval.results import figure_section, measure_all
from caramba_plugins_eval.subject import Subject

__all__ = ["KEPT", "evaluated", "keep"]

KEPT = "eval.json"
"""The file of a run's folder: the last figures of each metric, what each was measured on, and a table of them."""


def evaluated(metrics: Sequence[Metric], opened: Opened, thresholds: Thresholds) -> dict[str, Any]:
    """Measure; the figures, with all that shapes them."""
    subject, began = opened.subject, time.perf_counter()
    figures = measure_all(metrics, subject)
    own, uses_data = subject.evaluation, any("data" in metric.needs for metric in metrics)
    found = {
        "source": subject.name,
        "step": opened.step,
        "data": _origins(subject) if uses_data else None,
        "evaluation": {
            "context": own.context,
            "windows": own.windows,
            "batch_size": own.batch_size,
            "cache": _cache(subject),
        },
        "device": subject.device.type,
        "dtype": opened.dtype,
        "seed": subject.seed,
        "settings": {metric.called: _settings(metric) for metric in metrics},
        "metrics": figures,
        "seconds": round(time.perf_counter() - began, 3),
        "versions": {name: version(name) for name in ("caramba-core", "caramba-plugins-eval", "torch")},
    }
    judged = [{"threshold": asked, "found": value, "met": met} for asked, value, met in thresholds.judged(found)]
    return {**found, "verify": judged}


def _cache(subject: Subject) -> str:
    """How keys and values were stored, in a word."""
    own = (node.config for node in subject.model.graph.attentions().values())
    stored = [subject.storage or config.cache for config in own if isinstance(config, Attention)]
    names = {"full" if one is None else registry().name_of(type(one)) for one in stored}
    return names.pop() if len(names) == 1 else "by layer" if names else "full"


def keep(run: Path, found: Mapping[str, Any]) -> None:
    """Put figures into a run's folder, in place of earlier ones of the same metrics."""
    path = run / KEPT
    try:
        known: Any = json.loads(regular(path).read_text(encoding="utf-8"))
        figures, measured = dict(known["metrics"]), dict(known["measured"])
    except FileNotFoundError:
        figures, measured = {}, {}
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is damaged: {error}", hint="remove it, and measure again") from error
    facts = {key: value for key, value in found.items() if key not in ("metrics", "settings", "verify", "source")}
    for called, settings in found["settings"].items():
        figures = {name: figure for name, figure in figures.items() if name.partition(".")[0] != called}
        measured[called] = {**facts, "settings": settings}
    figures |= found["metrics"]
    write_json(path, {"metrics": figures, "measured": measured, "sections": [_table(figures, measured).data()]})


def _table(figures: Mapping[str, Any], measured: Mapping[str, Any]) -> Section:
    """The figures, with the step and the data of each."""
    plain = figure_section(figures)
    rows = []
    for row in plain.rows:
        facts = measured[str(row[0]).partition(".")[0]]
        rows.append((*row, facts["step"], facts["data"]))
    return Section(title="metrics, measured behind the run", columns=(*plain.columns, "step", "data"), rows=tuple(rows))


def _origins(subject: Subject) -> str:
    """What was measured on, all texts of several."""
    return ", ".join(tokens.origin for tokens in subject.texts.values()) or subject.tokens.origin


def _settings(metric: Metric) -> dict[str, Any]:
    """A metric's settings as plain data."""
    found: dict[str, Any] = json.loads(json.dumps(attrs.asdict(cast(Any, metric)), default=str))
    return found
