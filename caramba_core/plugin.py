"""The core's own hook module."""

from __future__ import annotations

from caramba_core.hookspecs import PluginInfo, hookimpl

__all__ = ["caramba_plugin_info"]


@hookimpl
def caramba_plugin_info() -> PluginInfo:
    """What the core is."""
    return PluginInfo(summary="manifests, graphs, plans, runs and plugins")
