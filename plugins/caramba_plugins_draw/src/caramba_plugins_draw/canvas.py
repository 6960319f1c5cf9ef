"""Drawing in SVG: the shapes and colours of a picture, written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal
from xml.sax.saxutils import escape, quoteattr

__all__ = ["Canvas"]

_FONT: Final = "'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif"
_COLOURS: Final = {
    "attention": "#3b5bdb",
    "mlp": "#0c8599",
    "norm": "#868e96",
    "edge": "#e8590c",
    "other": "#9c36b5",
    "ink": "#343a40",
    "soft": "#6c757d",
    "cache": "#5f3dc4",
}
_INK: Final = "#212529"
_LINE: Final = "#868e96"


class Canvas:
    """Collects SVG elements; coordinates are pixels from the upper left corner."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def svg(self, width: float, height: float, title: str) -> str:
        """The whole document."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" font-family="{_FONT}" role="img" aria-label={quoteattr(title)}>'
        )
        marker = (
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0.8 L7.2 4 L0 7.2 z" fill="{_LINE}"/></marker></defs>'
        )
        ground = f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>'
        return "\n".join([head, f"<title>{escape(title)}</title>", marker, ground, *self._parts, "</svg>"]) + "\n"

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float,
        bold: bool = False,
        style: str | None = None,
        anchor: Literal["start", "middle", "end"] = "start",
    ) -> None:
        """One line of text on the base line ``y``."""
        if not text:
            return
        weight = ' font-weight="600"' if bold else ""
        place = "" if anchor == "start" else f' text-anchor="{anchor}"'
        colour = _INK if style is None else _COLOURS[style]
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}"{weight}{place} fill="{colour}">{escape(text)}</text>'
        )

    def card(self, x: float, y: float, width: float, height: float, *, role: str, tip: str) -> None:
        """A component's card; ``tip`` shows when the pointer rests on it."""
        colour = _COLOURS[role]
        self._parts.append(
            f'<g><title>{escape(tip)}</title><rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'rx="7" fill="#ffffff" stroke="#ced4da"/>'
            f'<path d="M{x + 7:.1f} {y:.1f} h-1 a6 6 0 0 0 -6 6 v{height - 12:.1f} a6 6 0 0 0 6 6 h1 z" '
            f'fill="{colour}"/></g>'
        )

    def pill(self, x: float, y: float, width: float, height: float) -> None:
        """The ground behind what a component caches."""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="6" fill="#f3f0ff"/>'
        )

    def frame(self, x: float, y: float, width: float, height: float, *, offsets: Sequence[float] = ()) -> None:
        """A scope's frame, with the edges of more behind it, each so far up and to the right."""
        for offset in reversed(offsets):
            self._parts.append(_rounded(x + offset, y - offset, width, height, "#f1f3f5"))
        self._parts.append(_rounded(x, y, width, height, "#f8f9fa"))

    def badge(self, x: float, y: float, text: str) -> float:
        """A count; returns where it ends."""
        width = 14 + 8.6 * len(text)
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y - 16:.1f}" width="{width:.1f}" height="22" rx="11" fill="{_INK}"/>'
        )
        self._parts.append(
            f'<text x="{x + width / 2:.1f}" y="{y:.1f}" font-size="13" font-weight="600" text-anchor="middle" '
            f'fill="#ffffff">{escape(text)}</text>'
        )
        return x + width

    # ------------------------------------------------------------------------------------------------ lines

    def line(self, points: Sequence[tuple[float, float]]) -> None:
        """A line through points."""
        path = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self._parts.append(f'<path d="M{path}" fill="none" stroke="{_LINE}" stroke-width="1.5"/>')

    def arrow(
        self,
        x: float,
        top: float,
        bottom: float,
        *,
        label: str = "",
        head: bool = True,
        side: Literal["left", "right"] = "right",
    ) -> None:
        """An arrow straight down, with the width that flows along it; without a ``head`` a line that goes on."""
        if head:
            self._parts.append(
                f'<path d="M{x:.1f} {top:.1f} L{x:.1f} {bottom - 1:.1f}" stroke="{_LINE}" stroke-width="1.5" '
                f'marker-end="url(#tip)"/>'
            )
        else:
            self.line([(x, top), (x, bottom)])
        anchor: Literal["start", "end"] = "start" if side == "right" else "end"
        offset = 8 if side == "right" else -8
        self.text(x + offset, (top + bottom) / 2 + 4, label, size=11, style="soft", anchor=anchor)

    def skip(self, middle: float, side: float, top: float, bottom: float) -> None:
        """The line around a residual's layers, from the stream into the sum."""
        self._parts.append(
            f'<path d="M{middle:.1f} {top:.1f} H{side - 10:.1f} q10 0 10 10 V{bottom - 10:.1f} q0 10 -10 10 '
            f'H{middle + 12:.1f}" fill="none" stroke="{_LINE}" stroke-width="1.5" marker-end="url(#tip)"/>'
        )

    def loop(self, side: float, bottom: float, top: float, middle: float) -> None:
        """The way back of a body that is applied again."""
        path = f"M{middle:.1f} {bottom:.1f} H{side - 8:.1f} q8 0 8 -8 V{top + 8:.1f} q0 -8 -8 -8 H{middle + 3:.1f}"
        self._parts.append(
            f'<path d="{path}" fill="none" stroke="{_COLOURS["other"]}" stroke-width="1.5" stroke-dasharray="5 4" '
            f'marker-end="url(#tip)"/>'
        )

    def plus(self, x: float, y: float) -> None:
        """A sum."""
        self._parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="10" fill="#ffffff" stroke="{_LINE}" stroke-width="1.5"/>'
            f'<path d="M{x - 5:.1f} {y:.1f} h10 M{x:.1f} {y - 5:.1f} v10" stroke="{_INK}" stroke-width="1.5"/>'
        )


def _rounded(x: float, y: float, width: float, height: float, fill: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect {place} rx="12" fill="{fill}" stroke="#adb5bd"/>'
