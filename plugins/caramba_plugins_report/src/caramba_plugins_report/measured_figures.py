"""The figures about what a report measures itself: decoding, attention; and of runs that are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from caramba_plugins_report.attending import AttentionMaps
from caramba_plugins_report.comparing import Compared
from caramba_plugins_report.plotting import INK, MARKERS, SERIES, Drawing, Plot, drawn, look
from caramba_plugins_report.speed import DecodingSpeed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["of_attention", "of_decoding", "of_ratios"]

_LEVELS: Final = 20
"""Shades of a probability; each is one path, where one a cell would make a large file."""
_HEADS: Final = 3
_LONGEST: Final = 9
"""Characters of a token."""


def of_decoding(speeds: Sequence[DecodingSpeed], group: str) -> list[Drawing]:
    """Tokens a second, and bytes of the cache, against the context."""
    first = speeds[0]
    found = []
    kinds = (
        ("decoding", "tokens_per_second", "decoded tokens per second"),
        ("cache", "cache_bytes", "cache of one sequence (MiB)"),
    )
    for name, key, label in kinds:
        plot = Plot("context (tokens)", label)
        for index, model in enumerate(dict.fromkeys(one.model for one in speeds)):
            own = [one for one in speeds if one.model == model]
            values = [getattr(one, key) / (2**20 if key == "cache_bytes" else 1) for one in own]
            style: dict[str, Any] = {"color": SERIES[index % len(SERIES)], "marker": MARKERS[index % len(MARKERS)]}
            plot.axes.plot([one.context for one in own], values, label=model, **style)
        plot.axes.set_ylim(bottom=0)
        plot.axes.set_xlim(left=0)
        plot.legend()
        what = "Decoding speed of one sequence" if name == "decoding" else "Bytes of one sequence's cache"
        measured = f", on {first.device} in {first.dtype}" if name == "decoding" else ""
        found.append(plot.drawn(f"{group}_{name}_by_context", f"{what} against the context{measured}"))
    return found


def of_attention(maps: AttentionMaps, group: str) -> list[Drawing]:
    """The mean over heads of each model, side by side; and the heads in which two models differ most."""
    if not maps.maps:
        return []
    found = [_side_by_side(maps, None, group)]
    return found + [_side_by_side(maps, head, group) for head in maps.differing[:_HEADS]]


def of_ratios(compared: Sequence[Compared], names: Sequence[str]) -> Drawing | None:
    """Perplexities over the first run's with their 95 % intervals; ``None`` where nothing is to be paired."""
    shown = [(name, one.against) for name, one in zip(names, compared, strict=True) if one.against is not None]
    if not shown:
        return None
    plot = Plot("perplexity / the first run's", "run", height=max(1.4, 0.7 + 0.32 * len(shown)))
    for place, (_, ratio) in enumerate(shown):
        interval = ratio.interval
        error = None if interval is None else [[ratio.ratio - interval[0]], [interval[1] - ratio.ratio]]
        plot.axes.errorbar([ratio.ratio], [place], xerr=error, color=SERIES[0], marker="o", capsize=3)
    plot.axes.axvline(1.0, color=INK, linestyle="--", linewidth=1)
    plot.axes.set_yticks(range(len(shown)), [_short(name, 24) for name, _ in shown])
    plot.axes.invert_yaxis()
    plot.axes.margins(y=0.25)
    plot.numbers_across()
    return plot.drawn("ratios", f"Perplexity over that of {names[0]}; bars are 95 % intervals, paired by token")


def _side_by_side(maps: AttentionMaps, head: int | None, group: str) -> Drawing:
    from matplotlib.figure import Figure

    with look():
        figure = Figure(figsize=(4.1 * len(maps.maps) + 0.6, 4.3), layout="constrained")
        several = figure.subplots(1, len(maps.maps) + 1, width_ratios=[*(1 for _ in maps.maps), 0.045])
        labels = [_short(token, _LONGEST) for token in maps.tokens]
        for axes, (model, whole) in zip(several, maps.maps.items(), strict=False):
            _map(axes, whole.mean(axis=0) if head is None else whole[head])
            axes.set_title(f"{model}, {'mean over heads' if head is None else f'head {head}'}", fontsize=9.5)
            axes.set_xlabel("token attended to")
            axes.set_ylabel("token")
            places = np.arange(len(labels)) + 0.5
            axes.set_xticks(places, labels, rotation=90, fontsize=6)
            axes.set_yticks(places, labels, fontsize=6)
        _scale(several[-1])
    what = "mean over heads" if head is None else f"head {head}"
    differ = "" if head is None or len(maps.maps) < 2 else ", one of those in which the models differ most"
    seen = f"what each of the first {len(labels)} held-out tokens attends to"
    caption = f"Attention of {maps.attention}, {what}{differ}: {seen}"
    place = "mean" if head is None else f"head_{head}"
    return attrs.evolve(drawn(figure, f"{group}_{maps.attention}_{place}", caption), wide=True)


def _map(axes: Axes, probabilities: np.ndarray[Any, Any]) -> None:
    """Cells ``[T, T]`` whose shade is a probability, the first token on top."""
    size = len(probabilities)
    levels = np.ceil(np.sqrt(probabilities.clip(0, 1)) * _LEVELS).astype(int)
    runs = [run for row, line in enumerate(levels) for run in _runs(row, line)]
    for level in range(1, _LEVELS + 1):
        _cells(axes, [cells for own, cells in runs if own == level], level / _LEVELS)
    axes.set_xlim(0, size)
    axes.set_ylim(size, 0)
    axes.set_aspect("equal")
    axes.grid(visible=False)


def _runs(row: int, levels: np.ndarray[Any, Any]) -> Iterator[tuple[int, tuple[float, float, float, float]]]:
    """Neighbours of one shade in a row as one rectangle."""
    column = 0
    for level, alike in groupby(levels.tolist()):
        width = len(list(alike))
        yield level, (column, row, width, 1.0)
        column += width


def _scale(axes: Axes) -> None:
    """What the shades say."""
    for level in range(1, _LEVELS + 1):
        bottom, top = ((level - 1) / _LEVELS) ** 2, (level / _LEVELS) ** 2
        _cells(axes, [(0.0, bottom, 1.0, top - bottom)], level / _LEVELS)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.yaxis.set_label_position("right")
    axes.set_ylabel("probability")
    axes.grid(visible=False)


def _cells(axes: Axes, cells: Sequence[tuple[float, float, float, float]], shade: float) -> None:
    """Rectangles ``(x, y, width, height)`` of one shade as one path."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if cells:
        corners = [
            ((x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)) for x, y, width, height in cells
        ]
        codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(cells)
        path = Path(np.array(corners, dtype=np.float64).reshape(-1, 2), codes)
        axes.add_patch(PathPatch(path, facecolor=SERIES[0], edgecolor="none", alpha=shade))


def _short(text: str, most: int) -> str:
    """A text on one line, whatever it holds."""
    text = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return text if len(text) <= most else f"{text[: most - 1]}…"
