"""What the distribution is."""

from __future__ import annotations

from caramba_core.hookspecs import PluginInfo, hookimpl

__all__ = ["caramba_plugin_info"]


@hookimpl
def caramba_plugin_info() -> PluginInfo:
    """What this plugin is."""
    return PluginInfo(summary="explain, JSON Schema, scaffolds and checks for authors")
