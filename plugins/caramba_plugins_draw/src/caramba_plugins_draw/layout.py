"""Where everything of a sketch stands: boxes with sizes, made from the inside out, and drawn from the top down.

Every box has its way in at the middle of its top edge and its way out at the middle of its bottom edge.
"""

from __future__ import annotations

from typing import Final

from caramba_plugins_draw.canvas import Canvas, text_width, wrap
from caramba_plugins_draw.sketch import Card, Chain, Fan, Frame, Shape

__all__ = ["GAP", "Box", "arrange"]

GAP: Final = 30.0
"""Height of an arrow between two boxes."""
_CARD_WIDEST: Final = 660.0
_CARD_NARROWEST: Final = 200.0
_PAD: Final = 22.0
_BETWEEN: Final = 20.0
"""Room between branches."""
_SHEET: Final = 5.0
"""Offset of each sheet behind a frame that stands for several."""
_SKIP: Final = 30.0
"""Room beside a residual for the line that goes around it."""


class Box:
    """Something with a size that can be drawn."""

    width: float
    height: float
    pointed: bool = True
    """Whether the arrow that leads here ends at the top edge; else the line goes on inside."""

    def draw(self, canvas: Canvas, x: float, y: float) -> None:
        """Draw with the upper left corner at ``(x, y)``."""
        raise NotImplementedError(f"{type(self).__name__} does not define draw")


def arrange(shape: Shape, width: float) -> Box:
    """The box of a shape in at most ``width`` pixels, as far as that can be."""
    if isinstance(shape, Card):
        return CardBox(shape, width)
    if isinstance(shape, Chain):
        return ChainBox(shape, width)
    if isinstance(shape, Fan):
        return FanBox(shape, width)
    return ResidualBox(shape, width) if shape.is_residual else FrameBox(shape, width)


class CardBox(Box):
    """A component: name, type and parameters in the first line, its sizes below, its cache at the foot."""

    def __init__(self, card: Card, width: float) -> None:
        self.card = card
        self.width = max(_CARD_NARROWEST, min(width, _CARD_WIDEST))
        room = self.width - 36
        self.settings = wrap(card.settings, " \u00b7 ", 12, room)
        cache = ("cache:", *(f"{entry}," for entry in card.cache), f"in all {card.cache_size}") if card.cache else ()
        self.cache = wrap(cache, " ", 12, room - 20)
        self.type_at = text_width(card.name, 15, bold=True) + 12
        self.stacked = self.type_at + text_width(card.type, 13) + 24 + text_width(card.parameters, 13) > room
        self.height = 36 + 17 * (len(self.settings) + self.stacked) + (15 + 16 * len(self.cache)) * bool(self.cache)

    def draw(self, canvas: Canvas, x: float, y: float) -> None:
        """A white card with a stripe in the colour of its role."""
        card = self.card
        canvas.card(x, y, self.width, self.height, role=card.role, tip="\n".join([card.tip, *card.weights]))
        at = y + 23
        canvas.text(x + 18, at, card.name, size=15, bold=True)
        canvas.text(x + 18 + self.type_at, at, card.type, size=13, style=card.role)
        if self.stacked:
            at += 17
            canvas.text(x + 18, at, card.parameters, size=13, style="ink")
        else:
            canvas.text(x + self.width - 18, at, card.parameters, size=13, style="ink", anchor="end")
        for line in self.settings:
            at += 17
            canvas.text(x + 18, at, line, size=12, style="soft")
        if self.cache:
            canvas.pill(x + 18, at + 10, self.width - 36, 16 * len(self.cache) + 8)
            at += 9
            for line in self.cache:
                at += 16
                canvas.text(x + 28, at + 1, line, size=12, style="cache")


class ChainBox(Box):
    """Boxes below one another, with the width that flows between them on each arrow."""

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


class ResidualBox(Box):
    """``x + f(x)``: the layers, a line around them, and the sum below."""

    pointed = False

    def __init__(self, frame: Frame, width: float) -> None:
        self.inner = ChainBox(frame.inner, width - 2 * _SKIP)
        self.label = frame.title
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
        canvas.text(x + _SKIP, y + 10, self.label, size=12, style="soft")


class FrameBox(Box):
    """A scope: a title, what it is, and how often it is there or applied."""

    def __init__(self, frame: Frame, width: float) -> None:
        self.frame = frame
        self.pointed = frame.count == 1
        self.offsets = [_SHEET * (index + 1) for index in range(min(2, frame.count - 1))]
        self.sheets = max(self.offsets, default=0.0)
        self.inner = ChainBox(frame.inner, width - 2 * _PAD - 2 * self.sheets)
        title = _title_width(frame) + (70 if frame.count > 1 else 0)
        needed = max(title, text_width(frame.figures, 12), text_width(frame.reuse, 12)) + 36
        self.width = max(self.inner.width + 2 * _PAD, needed) + 2 * self.sheets
        self.head = 36 + 18 * bool(frame.figures) + 17 * bool(frame.reuse) + 22
        self.height = self.sheets + self.head + self.inner.height + 26

    def draw(self, canvas: Canvas, x: float, y: float) -> None:
        """A frame; with sheets behind it where it stands for several."""
        frame = self.frame
        x, y, width = x + self.sheets, y + self.sheets, self.width - 2 * self.sheets
        height = self.height - self.sheets
        middle = x + width / 2
        canvas.frame(x, y, width, height, offsets=self.offsets)
        if self.sheets:
            canvas.arrow(middle, y - self.sheets, y)
        at = y + 25
        left = canvas.badge(x + 18, at, f"{frame.count} \u00d7") + 10 if frame.count > 1 else x + 18
        _draw_title(canvas, left, at, frame)
        if frame.figures:
            at += 19
            canvas.text(x + 18, at, frame.figures, size=12, style="soft")
        canvas.text(x + 18, at + 17, frame.reuse, size=12, style="other")
        inside = y + self.head
        head, on_left = self.inner.pointed, frame.is_looped
        canvas.arrow(middle, inside - 20, inside, label=frame.width_in, head=head, on_left=on_left)
        self.inner.draw(canvas, middle - self.inner.width / 2, inside)
        canvas.line([(middle, y + height - 26), (middle, y + height)])
        if frame.is_looped:
            canvas.loop(x + width - 12, y + height - 13, inside - 12, middle)


class FanBox(Box):
    """Branches beside one another, one input above, what they become below."""

    def __init__(self, fan: Fan, width: float) -> None:
        self.fan = fan
        gaps = _BETWEEN * (len(fan.branches) - 1)
        each = (width - 2 * _PAD - gaps) / len(fan.branches)
        self.boxes = [ChainBox(branch, each) for branch in fan.branches]
        self.content = sum(box.width for box in self.boxes) + gaps
        needed = max(_title_width(fan), text_width(fan.figures, 12)) + 36
        self.width = max(self.content + 2 * _PAD, needed)
        self.head = 34 + 17 * bool(fan.figures)
        self.height = self.head + 40 + max(box.height for box in self.boxes) + 50

    def draw(self, canvas: Canvas, x: float, y: float) -> None:
        """Lines fan out at the top and come together at the bottom."""
        fan = self.fan
        canvas.frame(x, y, self.width, self.height)
        _draw_title(canvas, x + 18, y + 25, fan)
        canvas.text(x + 18, y + 42, fan.figures, size=12, style="soft")
        middle = x + self.width / 2
        top, foot = y + self.head + 40, y + self.height - 50
        left = middle - self.content / 2
        points = [middle]
        for box, branch in zip(self.boxes, fan.branches, strict=True):
            centre = left + box.width / 2
            points.append(centre)
            canvas.arrow(centre, top - 24, top, label=branch.width_in, head=box.pointed)
            box.draw(canvas, left, top)
            canvas.line([(centre, top + box.height), (centre, foot + 18)])
            if branch.width_out != fan.width_out:
                canvas.text(centre + 6, foot + 12, branch.width_out, size=11, style="soft")
            left += box.width + _BETWEEN
        for rail in (top - 24, foot + 18):
            canvas.line([(min(points), rail), (max(points), rail)])
        canvas.line([(middle, y + self.head), (middle, top - 24)])
        canvas.line([(middle, foot + 18), (middle, y + self.height)])


def _title_width(shape: Frame | Fan) -> float:
    return text_width(shape.title, 15, bold=True) + 10 + text_width(shape.note, 13)


def _draw_title(canvas: Canvas, x: float, y: float, shape: Frame | Fan) -> None:
    """The title, and behind it what the shape is."""
    canvas.text(x, y, shape.title, size=15, bold=True)
    canvas.text(x + text_width(shape.title, 15, bold=True) + 10, y, shape.note, size=13, style="soft")
