"""``plugins check``: import everything that plugins name, and build what needs no settings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any

import attrs

from caramba_core.errors import InvalidValue, PluginError
from caramba_core.kinds import LAYER_KINDS
from caramba_core.plugins.metadata import ComponentEntry, Plugin
from caramba_core.plugins.registry import Registry
from caramba_plugins_tools.showing import hook_names, named_plugin, plugin_info

__all__ = ["check_plugins"]

_WIDTH = 64
"""Input width at which components without required settings are built."""


def check_plugins(registry: Registry, name: str | None, *, write: Callable[[str], Any], style: Any) -> int:
    """Check one plugin, or all; write a line for each entry, and return how many are broken."""
    plugins = list(registry.plugins.values()) if name is None else [named_plugin(registry, name)]
    # All of them before the first build imports torch; modes, which may import it, last.
    entries = [entry for plugin in plugins if plugin.unusable is None for entry in _entries(plugin)]
    loaded = {entry: _load(registry, entry) for entry in sorted(entries, key=lambda entry: entry.kind == "mode")}
    broken = 0
    for plugin in plugins:
        write(style(f"{plugin.name} {plugin.version}", bold=True))
        problem = plugin.unusable
        if problem is not None:
            switched_off = plugin.state == "disabled"
            broken += not switched_off
            word = "skipped" if switched_off else style("broken", fg="red")
            write(f"  {word}: {problem.message}\n    hint: {problem.hint}")
            continue
        for note in plugin.notes:
            broken += 1
            write(f"  {style('broken', fg='red')}: {note.message}\n    hint: {note.hint}")
        for entry, outcome in _outcomes(registry, plugin, loaded):
            if isinstance(outcome, PluginError):
                broken += 1
                write(f"  {style('broken', fg='red')}  {outcome}")
            else:
                write(f"  {style('ok', fg='green')}      {entry.kind} {entry.name}{outcome}")
    write(f"\n{broken} broken" if broken else "\nall is well")
    return broken


def _entries(plugin: Plugin) -> tuple[ComponentEntry, ...]:
    return (*plugin.hooks, *plugin.components)


def _outcomes(
    registry: Registry, plugin: Plugin, loaded: Mapping[ComponentEntry, str | PluginError]
) -> Iterable[tuple[ComponentEntry, str | PluginError]]:
    """For each entry what was done with it, or why it is broken."""
    for entry in _entries(plugin):
        outcome = loaded[entry]
        try:
            if isinstance(outcome, PluginError):
                yield entry, outcome
            elif entry.kind == "hooks":
                hooks = hook_names(registry, entry)
                remark = outcome if plugin_info(registry, plugin) else "  (has no caramba_plugin_info)"
                yield entry, f": {', '.join(hooks)}{remark}" if hooks else remark
            else:
                yield entry, f"{_build(entry, registry.load(entry))}{outcome}"
        except PluginError as error:
            registry.note_failure(entry, error)
            yield entry, error


def _load(registry: Registry, entry: ComponentEntry) -> str | PluginError:
    """Load an entry's light side; a remark on it, or why it is broken."""
    torch_before = "torch" in sys.modules
    try:
        registry.load(entry)
    except PluginError as error:
        return error
    if entry.kind != "mode" and "torch" in sys.modules and not torch_before:
        return "  (imports torch, which slows listings and plans: import it where it is used)"
    return ""


def _build(entry: ComponentEntry, config: Any) -> str:
    """Import what a config builds, and build it on the meta device where its defaults allow; what was done."""
    path = getattr(config, "builds", "")
    if not (isinstance(config, type) and path):
        return ""
    module_name, _, name = path.partition(":")
    try:
        target = getattr(import_module(module_name), name)
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {error}"
        raise PluginError(
            f"{entry} {entry.version} is broken: what it builds, {path}, cannot be imported: {said}"
        ) from error
    required = [field.name for field in attrs.fields(config) if field.default is attrs.NOTHING]
    if required or entry.kind not in LAYER_KINDS or entry.kind == "topology":
        return f": {name} imports"
    import torch

    try:
        with torch.device("meta"):
            target(config(), _WIDTH)
    except InvalidValue:  # the defaults do not fit this width, which is the component's right
        return f": {name} imports"
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {error}"
        raise PluginError(
            f"{entry} {entry.version} is broken: building {path} with its defaults fails: {said}"
        ) from error
    return f": {name} imports and builds"
