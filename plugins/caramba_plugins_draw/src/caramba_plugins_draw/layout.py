"""Where everything of a sketch stands: boxes with sizes, made from the inside out, and drawn from the top down.

Every box has its way in at the middle of its top edge and its way out at the middle of its bottom edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Protocol

import attrs

from caramba_plugins_draw.canvas import Canvas
from caramba_plugins_draw.lettering import text_width, wrap
from caramba_plugins_draw.sketch import Card, Chain, Fan, Frame, Shape

__all__ = ["Box", "arrange"]

GAP: Final = 30.0
"""Height of an arrow between two boxes."""
_CARD_WIDEST: Final = 660.0
_CARD_NARROWEST: Final = 200.0
_PAD: Final = 22.0
_SHEET: Final = 5.0
"""Offset of each sheet behind a frame that stands for several."""
_SKIP: Final = 30.0
"""Room beside a residual for the line that goes around it."""


class Box(Protocol):
    """Something with a size that can be drawn."""

    width: float
    height: float
    pointed: bool
    """Whether the arrow that leads here ends at the top edge; else the line goes on inside."""

    def draw(self, canvas: Canvas, x: float, y: float) -> None:
        """Draw with the upper left corner at ``(x, y)``."""
        ...


def arrange(shape: Shape, width: float) -> Box:
    """The box of a shape in at most ``width`` pixels, as far as that can be."""
    if isinstance(shape, Card):
        return CardBox(shape, width)
    if isinstance(shape, Chain):
        return ChainBox(shape, width)
    if isinstance(shape, Fan):
        return FanBox(shape, width)
    if shape.is_residual:
        return ResidualBox(shape, width)
    return FrameBox(shape, width)


@attrs.define(init=False)
class CardBox:
    """A component: name, type and parameters in the first line, its sizes below, its cache at the foot."""

    card: Card
    width: float
    height: float
    pointed: bool
    _settings: list[str]
    _cache: list[str]
    _stacked: bool

    def __init__(self, card: Card, width: float) -> None:
        self.card = card
        self.pointed = True
        self.width = max(_CARD_NARROWEST, min(width, _CARD_WIDEST))
        room = self.width - 36
        self._settings = wrap(card.settings, " \u00b7 ", 12, room)
        self._cache = wrap(_phrases(card.cache), " ", 12, room - 20) if card.cache else []
        self._stacked = self._first_line() > room
        self.height = 36 + 17 * (len(self._settings) + self._stacked) + (15 + 16 * len(self._cache)) * bool(self._cache)

    def _first_line(self) -> float:
        card = self.card
        left = text_width(card.name, 15, bold=True) + 12 + text_width(card.type, 13)
        return left + 24 + text_width(card.parameters, 13)

    def draw(self, canvas: Canvas, x: float, y: float) -> None:
        """A white card with a stripe in the colour of its role."""
        card = self.card
        canvas.card(x, y, self.width, self.height, role=card.role, tip="\n".join([card.tip, *card.weights]))
        at = y + 23
        canvas.text(x + 18, at, card.name, size=15, bold=True)
        canvas.text(x + 18 + text_width(card.name, 15, bold=True) + 12, at, card.type, size=13, style=card.role)
        if self._stacked:
            at += 17
            canvas.text(x + 18, at, card.parameters, size=13, style="ink")
        else:
            canvas.text(x + self.width - 18, at, card.parameters, size=13, style="ink", anchor="end")
        for line in self._settings:
            at += 17
            canvas.text(x + 18, at, line, size=12, style="soft")
        if self._cache:
            canvas.pill(x + 18, at + 10, self.width - 36, 16 * len(self._cache) + 8)
            at += 9
            for line in self._cache:
                at += 16
                canvas.text(x + 28, at + 1, line, size=12, style="cache")


@attrs.define(init=False)
class ChainBox:
    """Boxes below one another, with the width that flows between them on each arrow."""

    boxes: list[Box]
    widths: list[str]
    width: float
    height: float
    pointed: bool

    def __init__(self, chain: Chain, width: float) -> None:
        self.boxes = [arrange(item, width) for item in chain.items]
        self.widths = [item.width_in for item in chain.items]
        self.width = max(box.width for box in self.boxes)
        self.height = sum(box.height for box in self.boxes) + GAP * (len(self.boxes) - 1)
        self.pointed = self.boxes[0].pointed

    def draw(self, canvas: Canvas, x: float, y: float) -> None:
        """From the top down, everything in the middle."""
        middle = x + self.width / 2
        for index, box in enumerate(self.boxes):
            if index:
                canvas.arrow(middle, y - GAP, y, label=self.widths[index], head=box.pointed)
            box.draw(canvas, middle - box.width / 2, y)
            y += box.height + GAP


@attrs.define(init=False)
class ResidualBox:
    """``x + f(x)``: the layers, a line around them, and the sum below."""

    inner: ChainBox
    label: str
    width: float
    height: float
    pointed: bool

    def __init__(self, frame: Frame, width: float) -> None:
        self.inner = ChainBox(frame.inner, width - 2 * _SKIP)
        self.label = frame.title
        self.pointed = False
        self.width = self.inner.width + 2 * _SKIP
        self.height = 22 + self.inner.height + 22 + 20

    def draw(self, canvas: Canvas, x: float, y: float) -> None:
        """The line leaves at the top, runs down on the right, and joins at the sum."""
        middle, side = x + self.width / 2, x + self.width - _SKIP / 2 + 4
        foot = y + 22 + self.inner.height + 22
        canvas.arrow(middle, y, y + 22, head=self.inner.pointed)
        canvas.skip(middle, side, y, foot + 10)
        self.inner.draw(canvas, x + _SKIP, y + 22)
        canvas.arrow(middle, foot - 22, foot)
        canvas.plus(middle, foot + 10)
        if self.label:
            canvas.text(x + _SKIP, y + 10, self.label, size=12, style="soft")


@attrs.define(init=False)
class FrameBox:
    """A scope: a title, what it is, and how often it is there or applied."""

    frame: Frame
    inner: ChainBox
    width: float
    height: float
    pointed: bool
    _head: float
    _sheets: float

    def __init__(self, frame: Frame, width: float) -> None:
        self.frame = frame
        self.pointed = frame.count == 1
        self._sheets = _SHEET * min(2, frame.count - 1)
        self.inner = ChainBox(frame.inner, width - 2 * _PAD - 2 * self._sheets)
        title = text_width(frame.title, 15, bold=True) + text_width(frame.note, 13) + 10
        if frame.count > 1:
            title += 70
        needed = max(title, text_width(frame.figures, 12), text_width(frame.reuse, 12)) + 36
        self.width = max(self.inner.width + 2 * _PAD, needed) + 2 * self._sheets
        self._head = 36 + 18 * bool(frame.figures) + 17 * bool(frame.reuse) + 22 + self._sheets
        self.height = self._head + self.inner.height + 26

    def draw(self, canvas: Canvas, x: float, y: float) -> None:
        """A frame; with sheets behind it where it stands for several."""
        frame = self.frame
        x, y, width = x + self._sheets, y + self._sheets, self.width - 2 * self._sheets
        height = self.height - self._sheets
        canvas.frame(x, y, width, height, offsets=[_SHEET * (i + 1) for i in range(min(2, frame.count - 1))])
        if self._sheets:
            canvas.arrow(x + width / 2, y - self._sheets, y)
        at = y + 25
        left = x + 18
        if frame.count > 1:
            left = canvas.badge(left, at, f"{frame.count} \u00d7") + 10
        canvas.text(left, at, frame.title, size=15, bold=True)
        canvas.text(left + text_width(frame.title, 15, bold=True) + 10, at, frame.note, size=13, style="soft")
        if frame.figures:
            at += 19
            canvas.text(x + 18, at, frame.figures, size=12, style="soft")
        if frame.reuse:
            at += 17
            canvas.text(x + 18, at, frame.reuse, size=12, style="other")
        middle, head = x + width / 2, self._head - self._sheets
        side: Literal["left", "right"] = "left" if frame.is_looped else "right"
        canvas.arrow(middle, y + head - 20, y + head, label=frame.width_in, head=self.inner.pointed, side=side)
        self.inner.draw(canvas, middle - self.inner.width / 2, y + head)
        canvas.line([(middle, y + height - 26), (middle, y + height)])
        if frame.is_looped:
            canvas.loop(x + width - 12, y + height - 13, y + head - 12, middle)


@attrs.define(init=False)
class FanBox:
    """Branches beside one another, one input above, what they become below."""

    fan: Fan
    boxes: list[ChainBox]
    width: float
    height: float
    pointed: bool
    _head: float

    def __init__(self, fan: Fan, width: float) -> None:
        self.fan = fan
        self.pointed = True
        count = len(fan.branches)
        each = (width - 2 * _PAD - 20 * (count - 1)) / count
        self.boxes = [ChainBox(branch, each) for branch in fan.branches]
        title = text_width(fan.title, 15, bold=True) + 10 + text_width(fan.note, 13)
        needed = max(title, text_width(fan.figures, 12)) + 36
        self.width = max(sum(box.width for box in self.boxes) + 20 * (count - 1) + 2 * _PAD, needed)
        self._head = 34 + 17 * bool(fan.figures)
        self.height = self._head + 40 + max(box.height for box in self.boxes) + 50

    def draw(self, canvas: Canvas, x: float, y: float) -> None:
        """Lines fan out at the top and come together at the bottom."""
        fan = self.fan
        canvas.frame(x, y, self.width, self.height)
        canvas.text(x + 18, y + 25, fan.title, size=15, bold=True)
        canvas.text(x + 28 + text_width(fan.title, 15, bold=True), y + 25, fan.note, size=13, style="soft")
        canvas.text(x + 18, y + 42, fan.figures, size=12, style="soft")
        middle = x + self.width / 2
        top, foot = y + self._head + 40, y + self.height - 50
        content = sum(box.width for box in self.boxes) + 20 * (len(self.boxes) - 1)
        left = middle - content / 2
        centres = []
        for box, branch in zip(self.boxes, fan.branches, strict=True):
            centre = left + box.width / 2
            centres.append(centre)
            canvas.arrow(centre, top - 24, top, label=branch.width_in, head=box.pointed)
            box.draw(canvas, left, top)
            canvas.line([(centre, top + box.height), (centre, foot + 18)])
            if branch.width_out != fan.width_out:
                canvas.text(centre + 6, foot + 12, branch.width_out, size=11, style="soft")
            left += box.width + 20
        _rail(canvas, [*centres, middle], top - 24)
        _rail(canvas, [*centres, middle], foot + 18)
        canvas.line([(middle, y + self._head), (middle, top - 24)])
        canvas.line([(middle, foot + 18), (middle, y + self.height)])


def _rail(canvas: Canvas, points: Sequence[float], y: float) -> None:
    canvas.line([(min(points), y), (max(points), y)])


def _phrases(cache: str) -> list[str]:
    """The pieces that a line of cache text may be broken between."""
    entries, _, size = cache.partition(": ")
    return [
        "cache:",
        *(f"{entry}," for entry in entries.split(", ")[:-1]),
        f"{entries.split(', ')[-1]},",
        f"in all {size}",
    ]
