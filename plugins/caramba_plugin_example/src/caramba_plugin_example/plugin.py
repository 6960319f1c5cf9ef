"""What the distribution is."""

from caramba_core.hookspecs import PluginInfo, hookimpl


@hookimpl
def caramba_plugin_info() -> PluginInfo:
    """What this plugin is."""
    return PluginInfo(summary="attention with linear distance biases, as an example")
