"""Drawing in SVG: shapes, colours and lettering of a picture, written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.sax.saxutils import escape, quoteattr

__all__ = ["Canvas", "fit", "text_width", "wrap"]

_FONT: Final = "'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif"
_COLOURS: Final = {
    "attention": "#3b5bdb",
    "mlp": "#0c8599",
    "norm": "#868e96",
    "edge": "#e8590c",
    "other": "#9c36b5",
    "title": "#212529",
    "ink": "#343a40",
    "soft": "#6c757d",
    "cache": "#5f3dc4",
    "paper": "#ffffff",
}
_ADVANCES: Final = {
    **dict.fromkeys("iIjl'|", 0.31),
    **dict.fromkeys("ft.,:; ()[]-r!\u00b7", 0.39),
    **dict.fromkeys("mMW@", 0.95),
    **dict.fromkeys("w\u00d7+<>=~", 0.83),
    **dict.fromkeys("ABCDGHKNOPQRSUVXYZ", 0.70),
}
_OTHERS: Final = 0.63
"""Widths of characters over the size of a wide sans-serif (DejaVu Sans), so that narrower fonts fit as well."""
_LINE: Final = "#868e96"
_TIP: Final = "url(#tip)"


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

    # ------------------------------------------------------------------------------------------------ text and areas

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int,
        bold: bool = False,
        style: str = "title",
        anchor: str = "start",
    ) -> None:
        """One line of text on the base line ``y``."""
        if not text:
            return
        look = {"font_size": f"{size}", "font_weight": "600" if bold else ""}
        place = "" if anchor == "start" else anchor
        opened = _element("text", x=x, y=y, **look, text_anchor=place, fill=_COLOURS[style]).removesuffix("/>")
        self._parts.append(f"{opened}>{escape(text)}</text>")

    def card(self, x: float, y: float, width: float, height: float, *, role: str, tip: str) -> None:
        """A component's card; ``tip`` shows when the pointer rests on it."""
        stripe = f"M{x + 7:.1f} {y:.1f} h-1 a6 6 0 0 0 -6 6 v{height - 12:.1f} a6 6 0 0 0 6 6 h1 z"
        ground = _rectangle(x, y, width, height, rx="7", fill="#ffffff", stroke="#ced4da")
        coloured = _element("path", d=stripe, fill=_COLOURS[role])
        self._parts.append(f"<g><title>{escape(tip)}</title>{ground}{coloured}</g>")

    def pill(self, x: float, y: float, width: float, height: float) -> None:
        """The ground behind what a component caches."""
        self._parts.append(_rectangle(x, y, width, height, rx="6", fill="#f3f0ff"))

    def frame(self, x: float, y: float, width: float, height: float, *, offsets: Sequence[float] = ()) -> None:
        """A scope's frame, with the edges of more behind it, each so far up and to the right."""
        for offset in (*reversed(offsets), 0.0):
            fill = "#f1f3f5" if offset else "#f8f9fa"
            sheet = _rectangle(x + offset, y - offset, width, height, rx="12", fill=fill, stroke="#adb5bd")
            self._parts.append(sheet)

    def badge(self, x: float, y: float, text: str) -> float:
        """A count; returns where it ends."""
        width = 14 + 8.6 * len(text)
        self._parts.append(_rectangle(x, y - 16, width, 22, rx="11", fill=_COLOURS["title"]))
        self.text(x + width / 2, y, text, size=13, bold=True, style="paper", anchor="middle")
        return x + width

    # ------------------------------------------------------------------------------------------------ lines

    def line(self, points: Sequence[tuple[float, float]]) -> None:
        """A line through points."""
        path = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self._stroke(f"M{path}")

    def arrow(
        self,
        x: float,
        top: float,
        bottom: float,
        *,
        label: str = "",
        head: bool = True,
        on_left: bool = False,
    ) -> None:
        """An arrow straight down, with the width that flows along it; without a ``head`` a line that goes on."""
        self._stroke(
            f"M{x:.1f} {top:.1f} L{x:.1f} {bottom - 1 if head else bottom:.1f}", marker_end=_TIP if head else ""
        )
        beside, anchor = (x - 8, "end") if on_left else (x + 8, "start")
        self.text(beside, (top + bottom) / 2 + 4, label, size=11, style="soft", anchor=anchor)

    def skip(self, middle: float, side: float, top: float, bottom: float) -> None:
        """The line around a residual's layers, from the stream into the sum."""
        around = f"M{middle:.1f} {top:.1f} H{side - 10:.1f} q10 0 10 10 V{bottom - 10:.1f} q0 10 -10 10"
        self._stroke(f"{around} H{middle + 12:.1f}", marker_end=_TIP)

    def loop(self, side: float, bottom: float, top: float, middle: float) -> None:
        """The way back of a body that is applied again."""
        path = f"M{middle:.1f} {bottom:.1f} H{side - 8:.1f} q8 0 8 -8 V{top + 8:.1f} q0 -8 -8 -8 H{middle + 3:.1f}"
        self._stroke(path, _COLOURS["other"], stroke_dasharray="5 4", marker_end=_TIP)

    def plus(self, x: float, y: float) -> None:
        """A sum."""
        circle = _element("circle", cx=x, cy=y, r="10", fill="#ffffff", stroke=_LINE, stroke_width="1.5")
        cross = f"M{x - 5:.1f} {y:.1f} h10 M{x:.1f} {y - 5:.1f} v10"
        self._parts.append(circle + _element("path", d=cross, stroke=_COLOURS["title"], stroke_width="1.5"))

    def _stroke(self, path: str, colour: str = _LINE, **more: str) -> None:
        self._parts.append(_element("path", d=path, fill="none", stroke=colour, stroke_width="1.5", **more))


def _rectangle(x: float, y: float, width: float, height: float, **look: str) -> str:
    return _element("rect", x=x, y=y, width=width, height=height, **look)


def _element(tag: str, **attributes: float | str) -> str:
    """An element without content: numbers are coordinates; attributes without a text are left out."""
    written = {name: value if isinstance(value, str) else f"{value:.1f}" for name, value in attributes.items()}
    looks = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in written.items() if value)
    return f"<{tag}{looks}/>"


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Width of a line in pixels, rather too large than too small."""
    em = sum(_ADVANCES.get(character, _OTHERS) for character in text)
    return em * size * (1.09 if bold else 1.0)


def wrap(parts: Sequence[str], separator: str, size: float, width: float, *, most: int = 3) -> list[str]:
    """Parts joined into lines of at most ``width`` pixels; what does not fit into ``most`` lines is cut."""
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]}{separator}{part}" if lines else part
        if lines and text_width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    if len(lines) > most:
        lines = [*lines[: most - 1], separator.join(lines[most - 1 :])]
    return [fit(line, size, width) for line in lines]


def fit(text: str, size: float, width: float) -> str:
    """The text, its end left out where it is too long."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(f"{text}\u2026", size) > width:
        text = text[:-1]
    return f"{text.rstrip()}\u2026"
