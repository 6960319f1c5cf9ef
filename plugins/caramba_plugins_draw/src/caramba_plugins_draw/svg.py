"""A sketch as SVG, 1000 pixels wide; wider only where branches need it."""

from __future__ import annotations

from typing import Final

from caramba_plugins_draw.canvas import Canvas, wrap
from caramba_plugins_draw.layout import GAP, arrange
from caramba_plugins_draw.sketch import Sketch

__all__ = ["svg"]

_WIDTH: Final = 1000.0
_MARGIN: Final = 40.0


def svg(sketch: Sketch) -> str:
    """The document."""
    canvas = Canvas()
    box = arrange(sketch.chain, _WIDTH - 2 * _MARGIN)
    width = max(_WIDTH, box.width + 2 * _MARGIN)
    y = 46.0
    canvas.text(_MARGIN, y, sketch.title, size=22, bold=True)
    for line in wrap(sketch.facts, "   \u00b7   ", 13, width - 2 * _MARGIN, most=6):
        y += 20
        canvas.text(_MARGIN, y, line, size=13, style="soft")
    middle = width / 2
    y += 26
    canvas.text(middle, y + 6, "token ids", size=13, style="ink", anchor="middle")
    y += 12
    canvas.arrow(middle, y, y + GAP)
    y += GAP
    box.draw(canvas, middle - box.width / 2, y)
    y += box.height
    canvas.arrow(middle, y, y + GAP, label=sketch.chain.width_out)
    y += GAP + 16
    canvas.text(middle, y, "logits", size=13, style="ink", anchor="middle")
    return canvas.svg(width, y + 30, sketch.title)
