"""``plugins show``: a plugin's own words, and its components with their fields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import metadata
from importlib.util import find_spec

import typer

from caramba_core.errors import PluginError
from caramba_core.hookspecs import PluginInfo, hookimpl
from caramba_core.plugins.metadata import ComponentEntry, Plugin, normalized
from caramba_core.plugins.registry import Registry
from caramba_core.suggestions import listing, nearest
from caramba_plugins_tools.explain import explain_entry, render

__all__ = ["hook_names", "named_plugin", "plugin_info", "reported_as_broken", "show_plugin"]


def named_plugin(registry: Registry, name: str) -> Plugin:
    """The plugin that a user means by a distribution's name or by its short one."""
    wanted = normalized(name)
    for plugin in registry.plugins.values():
        if wanted in (plugin.name, normalized(plugin.short_name)):
            return plugin
    near = nearest(wanted, registry.plugins)
    raise PluginError(
        f"no plugin {name!r} is installed",
        expected=listing(registry.plugins),
        hint=f"did you mean {near[0]!r}?" if near else f"pip install {name}",
    )


def plugin_info(registry: Registry, plugin: Plugin) -> PluginInfo:
    """What a plugin says of itself by its hook, or else by the summary in its metadata.

    Raises :class:`PluginError` where it is broken.
    """
    for entry in plugin.hooks:
        tell = getattr(registry.load(entry), "caramba_plugin_info", None)
        if tell is None:
            continue
        with reported_as_broken(entry, "caramba_plugin_info fails"):
            info = tell()
        if not isinstance(info, PluginInfo):
            raise PluginError(
                f"{entry} {entry.version} is broken: caramba_plugin_info gives a {type(info).__name__}",
                expected="a caramba_core.hookspecs.PluginInfo",
            )
        return info
    return PluginInfo(summary=metadata(plugin.name)["Summary"] or "")


@contextmanager
def reported_as_broken(entry: ComponentEntry, what: str) -> Iterator[None]:
    """Whatever a plugin's own code raises, as a :class:`PluginError` that says ``what`` failed."""
    try:
        yield
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {error}"
        raise PluginError(f"{entry} {entry.version} is broken: {what}: {said}") from error


def hook_names(registry: Registry, entry: ComponentEntry) -> tuple[str, ...]:
    """The hooks that a hook module takes part in, beside the one that says what the plugin is."""
    marked = (
        options.get("specname") or name
        for name, function in vars(registry.load(entry)).items()
        if isinstance(options := getattr(function, f"{hookimpl.project_name}_impl", None), dict)
    )
    return tuple(name for name in marked if name != "caramba_plugin_info")


def show_plugin(registry: Registry, name: str) -> None:
    """Print what ``plugins show NAME`` tells."""
    plugin = named_plugin(registry, name)
    state, problems = registry.state(plugin)
    typer.echo(f"{typer.style(f'{plugin.name} {plugin.version}', bold=True)}  {state}")
    for problem in problems:
        typer.echo(f"  problem: {problem.message}\n    hint: {problem.hint}")
    if plugin.unusable is not None:
        return
    try:
        for line in _about(registry, plugin, plugin_info(registry, plugin)):
            typer.echo(f"  {line}")
    except PluginError as error:
        typer.echo(f"  problem: {error}")
    for entry in plugin.components:
        typer.echo()
        try:
            render([explain_entry(registry, entry)])
        except PluginError as error:
            typer.echo(f"{entry.kind} {entry.name}\n  problem: {error}")


def _about(registry: Registry, plugin: Plugin, info: PluginInfo) -> Iterable[str]:
    if info.summary:
        yield info.summary
    if info.documentation:
        yield f"documentation: {info.documentation}"
    for extra, modules in info.extras.items():
        missing = [module for module in modules if find_spec(module) is None]
        told = f"missing {', '.join(missing)}: pip install '{plugin.name}[{extra}]'" if missing else "installed"
        yield f"extra {extra}: {told}"
    hooks = [name for entry in plugin.hooks for name in hook_names(registry, entry)]
    if hooks:
        yield f"hooks: {', '.join(hooks)}"
