"""Pictures of a planned model: SVG, Mermaid, HTML.  No torch, and no program but this one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from caramba_core.errors import InputError

if TYPE_CHECKING:
    from caramba_core.plan import Plan
    from caramba_plugins_draw.sketch import Sketch

__all__ = ["SUFFIXES", "picture", "write"]

SUFFIXES: Final = (".svg", ".mmd", ".html")
"""What a picture's file name may end in."""


def picture(plan: Plan, suffix: str) -> str:
    """The picture of a plan's model in the format of a file's suffix; raises :class:`InputError` for an unknown one."""
    drawers: dict[str, Callable[[Plan], str]] = {".svg": _svg, ".mmd": _mermaid, ".html": _html}
    if suffix not in drawers:
        raise InputError(
            f"a picture cannot be written as {suffix or 'a file without a suffix'}", expected=", ".join(SUFFIXES)
        )
    return drawers[suffix](plan)


def write(plan: Plan, output: Path) -> None:
    """Write the picture of a plan's model."""
    text = picture(plan, output.suffix.lower())
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror or error}") from error


def _svg(plan: Plan) -> str:
    from caramba_plugins_draw.svg import svg

    return svg(_sketch(plan))


def _mermaid(plan: Plan) -> str:
    from caramba_plugins_draw.mermaid import mermaid

    return mermaid(_sketch(plan))


def _html(plan: Plan) -> str:
    from caramba_plugins_draw.page import page

    return page(_sketch(plan), plan.model)


def _sketch(plan: Plan) -> Sketch:
    from caramba_plugins_draw.sketch import sketch

    return sketch(plan.model, plan.title, plan.facts())
