"""What the distribution is, and plans on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caramba_core.hookspecs import PluginInfo, hookimpl

if TYPE_CHECKING:
    from caramba_core.plan import Plan

__all__ = ["caramba_plugin_info", "show_plans"]


@hookimpl
def caramba_plugin_info() -> PluginInfo:
    """What this plugin is."""
    return PluginInfo(summary="plans on the terminal; pictures of models: SVG, Mermaid, HTML")


@hookimpl
def show_plans(plans: Sequence[Plan], full: bool) -> None:
    """Trees and tables."""
    from caramba_plugins_draw.terminal import show

    show(plans, full=full)
