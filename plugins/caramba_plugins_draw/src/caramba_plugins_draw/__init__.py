"""Pictures of a planned model: SVG, Mermaid, HTML.  No torch, and no program but this one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from caramba_core.errors import InputError

if TYPE_CHECKING:
    from caramba_core.plan import Plan

__all__ = ["SUFFIXES", "picture", "write"]

SUFFIXES: Final = (".svg", ".mmd", ".html")
"""What a picture's file name may end in."""


def picture(plan: Plan, suffix: str) -> str:
    """The picture of a plan's model in the format of a file's suffix; raises :class:`InputError` for an unknown one."""
    if suffix not in SUFFIXES:
        raise InputError(
            f"a picture cannot be written as {suffix or 'a file without a suffix'}", expected=", ".join(SUFFIXES)
        )
    from caramba_plugins_draw.mermaid import mermaid
    from caramba_plugins_draw.page import page
    from caramba_plugins_draw.sketch import sketch
    from caramba_plugins_draw.svg import svg

    drawn = sketch(plan.model, plan.title, plan.facts())
    if suffix == ".html":
        return page(drawn, plan.model)
    return svg(drawn) if suffix == ".svg" else mermaid(drawn)


def write(plan: Plan, output: Path) -> None:
    """Write the picture of a plan's model."""
    text = picture(plan, output.suffix.lower())
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror or error}") from error
