"""``plugins show``: a plugin's own words, and its components with their fields."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import attrs

from caramba_core.errors import PluginError
from caramba_core.hookspecs import PluginInfo, hookimpl
from caramba_core.plugins.metadata import ComponentEntry, Plugin, normalized
from caramba_core.plugins.registry import Registry
from caramba_core.suggestions import listing, nearest

__all__ = ["field_lines", "hook_names", "named_plugin", "plugin_info", "shown"]


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
        try:
            info = tell()
        except (Exception, SystemExit) as error:
            said = f"{type(error).__name__}: {error}"
            raise PluginError(f"{entry} {entry.version} is broken: caramba_plugin_info fails: {said}") from error
        if not isinstance(info, PluginInfo):
            raise PluginError(
                f"{entry} {entry.version} is broken: caramba_plugin_info gives a {type(info).__name__}",
                expected="a caramba_core.hookspecs.PluginInfo",
            )
        return info
    return None


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
        found = registry.load(entry)
    except PluginError as error:
        yield f"  problem: {error}"
        return
    summary = (getattr(found, "__doc__", None) or "").strip().partition("\n")[0]
    if summary and isinstance(found, type):
        yield f"  {summary}"
    if isinstance(found, type) and attrs.has(found):
        yield from field_lines(found)


def field_lines(config: type) -> Iterable[str]:
    """One line for each field of a config: name, type, default, range, meaning."""
    for field in attrs.fields(config):
        rules = field.metadata
        bounds = [
            f"{sign} {rules[name]}"
            for name, sign in (("minimum", ">="), ("above", ">"), ("maximum", "<="), ("below", "<"))
            if rules.get(name) is not None
        ]
        if rules.get("choices"):
            bounds.append("one of " + ", ".join(map(str, rules["choices"])))
        if rules.get("unit"):
            bounds.append(str(rules["unit"]))
        about = f" ({', '.join(bounds)})" if bounds else ""
        typed = f"{field.name.rstrip('_')}: {_type_words(field.type)}{_default_words(field)}{about}"
        yield f"    {typed}  {rules.get('help', '')}"


def _type_words(annotation: Any) -> str:
    words = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return words.replace("typing.", "").replace("caramba_core.component.", "")


def _default_words(field: attrs.Attribute[Any]) -> str:
    default: Any = field.default
    if default is attrs.NOTHING:
        return ", required"
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return ""
    return f" = {'null' if default is None else default}"
