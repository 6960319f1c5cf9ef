"""``plugins show``: a plugin's own words, and its components with their fields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from caramba_core.errors import PluginError
from caramba_core.hookspecs import PluginInfo, hookimpl
from caramba_core.plugins.metadata import ComponentEntry, Plugin, normalized
from caramba_core.plugins.registry import Registry
from caramba_core.suggestions import listing, nearest
from caramba_plugins_tools.explain import explain_entry

__all__ = ["hook_names", "named_plugin", "plugin_info", "reported_as_broken", "shown"]


def named_plugin(registry: Registry, name: str) -> Plugin:
    """The plugin that a user means by a distribution's name or by the name of its hook module."""
    plugin = registry.plugins.get(normalized(name))
    if plugin is not None:
        return plugin
    for candidate in registry.plugins.values():
        if any(entry.name == name for entry in candidate.hooks):
            return candidate
    near = nearest(normalized(name), registry.plugins)
    raise PluginError(
        f"no plugin {name!r} is installed",
        expected=listing(registry.plugins),
        hint=f"did you mean {near[0]!r}?" if near else f"pip install {name}",
    )


def plugin_info(registry: Registry, plugin: Plugin) -> PluginInfo | None:
    """What a plugin says of itself, or ``None`` where it says nothing.

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
    return None


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


def shown(registry: Registry, name: str, *, style: Any) -> str:
    """The text of ``plugins show NAME``."""
    plugin = named_plugin(registry, name)
    state, problems = registry.state(plugin)
    lines = [f"{style(f'{plugin.name} {plugin.version}', bold=True)}  {state}"]
    for problem in problems:
        lines += [f"  problem: {problem.message}", f"    hint: {problem.hint}"]
    if plugin.unusable is not None:
        return "\n".join(lines)
    lines += _info_lines(registry, plugin)
    for entry in plugin.components:
        lines += ["", f"{style(entry.kind, fg='cyan')} {style(entry.name, bold=True)}"]
        lines += _component_lines(registry, entry)
    return "\n".join(lines)


def _info_lines(registry: Registry, plugin: Plugin) -> Iterable[str]:
    try:
        info = plugin_info(registry, plugin)
    except PluginError as error:
        yield f"  problem: {error}"
        return
    if info is not None:
        yield f"  {info.summary}"
        if info.documentation:
            yield f"  documentation: {info.documentation}"
        for extra, modules in info.extras.items():
            missing = [module for module in modules if find_spec(module) is None]
            told = f"missing {', '.join(missing)}: pip install '{plugin.name}[{extra}]'" if missing else "installed"
            yield f"  extra {extra}: {told}"
    hooks = [name for entry in plugin.hooks for name in hook_names(registry, entry)]
    if hooks:
        yield f"  hooks: {', '.join(hooks)}"


def _component_lines(registry: Registry, entry: ComponentEntry) -> Iterable[str]:
    try:
        explained = explain_entry(registry, entry)
    except PluginError as error:
        yield f"  problem: {error}"
        return
    summary = explained.text.partition("\n")[0]
    if summary and summary != registry.kinds[entry.kind].gives:
        yield f"  {summary}"
    for field in explained.fields:
        value = "required" if field.required else field.default
        about = ", ".join(part for part in (field.range, field.unit) if part)
        yield f"    {field.name}: {field.type} = {value}{f' ({about})' if about else ''}  {field.meaning}"
