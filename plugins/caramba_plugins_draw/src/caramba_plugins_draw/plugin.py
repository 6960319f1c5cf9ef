"""Plans on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caramba_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from caramba_core.plan import Plan

__all__ = ["show_plans"]


@hookimpl
def show_plans(plans: Sequence[Plan], full: bool) -> None:
    """Trees and tables."""
    from caramba_plugins_draw.terminal import show

    show(plans, full=full)
