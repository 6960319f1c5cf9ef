"""The figures about what runs wrote: curves by step and layer, perplexity against cached bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from caramba_plugins_report.plotting import INK, MARKERS, SERIES, Drawing, Plot
from caramba_plugins_report.records import number
from caramba_plugins_report.whole import Whole

__all__ = ["against_cache", "by_layer", "by_step"]

_POINTS: Final = 400
"""Points of a curve; of more steps, means are drawn."""
_LABELLED: Final = 8


def by_step(run: Whole) -> list[Drawing]:
    """Loss, learning rate, gradient norm and held-out perplexity of a run against its steps, as far as it has them."""
    blockwise = any("worst_block" in line for line in run.metrics)
    kinds = (
        ("loss", "loss", f"training loss ({'error / energy' if blockwise else 'nats per token'})", False),
        ("learning_rate", "lr", "learning rate", False),
        ("gradient_norm", "gradient_norm", "gradient norm", True),
        ("perplexity", "perplexity", "held-out perplexity", False),
    )
    found = []
    for name, key, label, logarithmic in kinds:
        points = list(_series(run.metrics, key))
        if len(points) < 2 and not (points and key == "perplexity"):
            continue
        steps, values = np.array(points, dtype=np.float64).T
        bins = -(-len(steps) // _POINTS)
        shown = label if bins == 1 else f"{label}, mean of {bins}"
        drawing = Plot("optimizer step", shown)
        drawing.axes.plot(
            *(_means(each, bins) for each in (steps, values)), color=SERIES[0], marker=_marker(points), label=run.id
        )
        if logarithmic and (values > 0).all() and values.max() > 20 * values.min():
            drawing.logarithmic()
        teacher = run.perplexity("teacher") if key == "perplexity" else None
        if teacher is not None:
            drawing.axes.axhline(teacher[0], color=SERIES[1], linestyle="--", label="teacher")
            drawing.legend()
        caption = f"{label[0].upper()}{label[1:]} of {run.id} by optimizer step"
        found.append(drawing.drawn(f"{run.info.group}_{run.id}_{name}", caption))
    return found


def against_cache(runs: Sequence[Whole], name: str) -> Drawing | None:
    """Perplexity over the teacher's against cached bytes per token, one point a run with its 95 % interval."""
    points = []
    for run in runs:
        cached, ratio = run.info.cache_bytes_per_token, run.info.ratio
        if cached is not None and ratio is not None and ratio > 0:
            points.append((run, cached, ratio))
    if not points:
        return None
    context = next((run.info.cache_context for run, _, _ in points if run.info.cache_context), None)
    at = f" at a context of {context:,}" if context else ""
    drawing = Plot(f"cached bytes per token{at}", "perplexity / teacher's")
    groups = list(dict.fromkeys((run.info.name, run.info.group) for run, _, _ in points))
    labels = []
    for run, cached, ratio in points:
        at_group = groups.index((run.info.name, run.info.group)) % len(SERIES)
        paired = run.ratio("end")
        interval = paired.interval if paired is not None else None
        error = None if interval is None else [[max(0, ratio - interval[0])], [max(0, interval[1] - ratio)]]
        style: dict[str, Any] = {
            "color": SERIES[at_group],
            "marker": MARKERS[at_group],
            "capsize": 3,
            "linestyle": "none",
        }
        drawing.axes.errorbar([cached], [ratio], yerr=error, **style)
        own = run.id if len(groups) == 1 else f"{run.info.group}/{run.id}"
        labels.append((cached, ratio, own))
    teacher = next(
        (found for run, *_ in points if (found := number(run.summary, "cache_bytes_per_token", "teacher"))), None
    )
    if teacher is not None:
        drawing.axes.plot([teacher], [1.0], color=INK, marker="*", markersize=9, linestyle="none")
        labels.append((teacher, 1.0, "teacher"))
    ratios = [ratio for _, ratio, _ in labels]
    if max(ratios) > 5 * min(ratios):
        drawing.logarithmic()
    drawing.axes.margins(x=0.12, y=0.15)
    drawing.axes.set_xlim(left=0)
    if len(labels) <= _LABELLED:
        drawing.label(labels)
    caption = "Perplexity over the teacher's against cached bytes per token; bars are 95 % intervals, paired by token"
    return drawing.drawn(name, caption)


def by_layer(run: Whole) -> list[Drawing]:
    """What a conversion lost in each layer, and what is left of it behind the refit of the layer's output."""
    found = []
    refit = _layers(run.calibration, "refit", ("before", "after"))
    title = "Relative squared error of each attention's output against the teacher's"
    refit = {f"{key} refit": points for key, points in refit.items()}
    if refit:
        found.append(_of_layers(refit, "error / energy of output", f"{run.info.group}_{run.id}_layers", title))
    keys = {
        key for entry in run.calibration.values() if isinstance(entry, dict) for key in _numbers(entry.get("start"))
    }
    lost = _layers(run.calibration, "start", sorted(key for key in keys if key.endswith("_lost")))
    lost = {key.removesuffix("_lost"): points for key, points in lost.items()}
    if lost:
        title = "What the start of each attention leaves out"
        found.append(_of_layers(lost, "fraction lost", f"{run.info.group}_{run.id}_start", title))
    return found


def _of_layers(series: Mapping[str, list[tuple[int, float]]], label: str, name: str, caption: str) -> Drawing:
    drawing = Plot("attention, from the first layer on", label)
    for index, (key, points) in enumerate(series.items()):
        style: dict[str, Any] = {"color": SERIES[index % len(SERIES)], "marker": MARKERS[index % len(MARKERS)]}
        drawing.axes.plot(*zip(*points, strict=True), label=key, linewidth=1, **style)
    drawing.axes.set_ylim(bottom=0)
    drawing.legend()
    return drawing.drawn(name, caption)


def _series(metrics: Iterable[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Steps and values of a metric; of perplexities those that were measured like the last."""
    lines = [line for line in metrics if number(line, key) is not None and number(line, "step") is not None]
    if key == "perplexity" and lines:
        lines = [line for line in lines if line.get("measured") == lines[-1].get("measured")]
    return [(float(line["step"]), float(line[key])) for line in lines]


def _means(values: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """Means of neighbours, so many at a time."""
    return np.array([part.mean() for part in np.array_split(values, -(-len(values) // size))])


def _marker(points: Sequence[object]) -> str:
    return "o" if len(points) <= 40 else ""


def _layers(calibration: Mapping[str, Any], part: str, keys: Iterable[str]) -> dict[str, list[tuple[int, float]]]:
    """Points ``(index of the layer, value)`` of each key in a part of a conversion's notes."""
    found: dict[str, list[tuple[int, float]]] = {}
    for index, entry in enumerate(entry for entry in calibration.values() if isinstance(entry, dict)):
        numbers = _numbers(entry.get(part))
        for key in keys:
            if key in numbers:
                found.setdefault(key, []).append((index, numbers[key]))
    return found


def _numbers(entry: Any) -> dict[str, float]:
    known = {str(key): number(entry, key) for key in entry} if isinstance(entry, dict) else {}
    return {key: value for key, value in known.items() if value is not None}
