"""Widths of text in a picture, and breaking it into lines.

The advances are those of a wide sans-serif (DejaVu Sans), so that narrower fonts fit as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["fit", "text_width", "wrap"]

_NARROW: Final = {
    **dict.fromkeys("iIjl'|", 0.31),
    **dict.fromkeys("ft.,:; ()[]-r!\u00b7", 0.39),
    **dict.fromkeys("mMW@", 0.95),
    **dict.fromkeys("w\u00d7+<>=~", 0.83),
    **dict.fromkeys("ABCDGHKNOPQRSUVXYZ", 0.70),
}
_OTHERS: Final = 0.63


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Width of a line in pixels, rather too large than too small."""
    em = sum(_NARROW.get(character, _OTHERS) for character in text)
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
