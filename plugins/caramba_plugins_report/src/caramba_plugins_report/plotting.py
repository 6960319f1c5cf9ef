"""How the figures of a report are drawn: as SVG, with their text as text; every axis has its label and unit."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["INK", "MARKERS", "SERIES", "SOFT", "Drawing", "Plot", "drawn", "look"]

INK: Final = "#24292f"
SOFT: Final = "#d0d7de"
SERIES: Final = ("#0550ae", "#bc4c00", "#116329", "#8250df", "#a40e26")
"""Colours of text, grid and series on white; a page may put others in their place."""
MARKERS: Final = "osD^v"
"""Of the series, in the same order."""

_SIZE: Final = (3.9, 2.7)
"""Inches: on a phone's width the letters keep their size."""
_LONGEST: Final = 20
"""Characters of a point's name."""
_LOOK: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": INK,
    "grid.color": SOFT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.markersize": 4,
    "legend.fontsize": 8.5,
    "savefig.transparent": True,
    "lines.linewidth": 1.4,
    "axes.formatter.use_mathtext": False,
}


@attrs.frozen(kw_only=True)
class Drawing:
    """A figure: a name for files, a caption, and an SVG element; a ``wide`` one is scrolled on a phone."""

    name: str
    caption: str
    svg: str
    wide: bool = False


class Plot:
    """One pair of axes."""

    def __init__(self, x: str, y: str, *, height: float = _SIZE[1]) -> None:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        with look():
            self._figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
            self.axes: Axes = self._figure.add_subplot()
            self.axes.set_xlabel(x)
            self.axes.set_ylabel(y)
            self.axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            self.axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")

    def logarithmic(self) -> None:
        """Make the y axis logarithmic, with plain numbers at its ticks."""
        from matplotlib.ticker import NullFormatter

        self.axes.set_yscale("log")
        self.axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        self.axes.yaxis.set_minor_formatter(NullFormatter())

    def numbers_across(self) -> None:
        """Let the x axis have numbers that are no integers."""
        from matplotlib.ticker import MaxNLocator

        self.axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        self.axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")

    def legend(self) -> None:
        """Name the series above the axes, where no curve is; their names are texts, whatever they hold."""
        place: dict[str, Any] = {"bbox_to_anchor": (-0.02, 1.0), "borderpad": 0.0, "columnspacing": 1.2}
        with look():
            self.axes.legend(loc="lower left", frameon=False, ncols=3, **place)

    def label(self, labels: Iterable[tuple[float, float, str]]) -> None:
        """Name points: each name beside its own on the side with more room, none over another."""
        self._figure.draw_without_rendering()
        placed: list[tuple[float, float]] = []
        for x, y, text in sorted(labels, key=lambda one: one[1]):
            across, up = self.axes.transAxes.inverted().transform(self.axes.transData.transform((x, y)))
            height = float(up)
            while any(abs(height - other) < 0.085 and abs(across - beside) < 0.45 for beside, other in placed):
                height += 0.02
            placed.append((float(across), height))
            left = across > 0.7
            shown = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
            self.axes.annotate(
                shown,
                (across, height),
                xycoords="axes fraction",
                xytext=(-7 if left else 7, 0),
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                fontsize=8.5,
                color=INK,
                parse_math=False,
                annotation_clip=False,
            )

    def drawn(self, name: str, caption: str) -> Drawing:
        """The figure as an SVG element that refers to nothing outside of it."""
        return drawn(self._figure, name, caption)


@contextmanager
def look() -> Iterator[None]:
    """The look of a report's figures, for those that are made in the block; texts stay texts, whatever they hold."""
    from matplotlib import rc_context

    with rc_context(_LOOK):
        yield


def drawn(figure: Figure, name: str, caption: str) -> Drawing:
    """A figure as an SVG element that refers to nothing outside of it."""
    from matplotlib import rc_context

    content = io.StringIO()
    with warnings.catch_warnings(), rc_context({**_LOOK, "svg.hashsalt": name}):
        warnings.simplefilter("ignore")  # letters that the font lacks: whoever shows the text has others
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(content, format="svg", metadata=nothing)
    text = content.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), text)  # points / 100 are enough
    return Drawing(name=name, caption=caption, svg=text)
