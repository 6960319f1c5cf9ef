"""``plugins check``: import everything that plugins name, and build what needs no settings."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Final

import attrs
import typer

from caramba_core.errors import InvalidValue, PluginError
from caramba_core.kinds import LAYER_KINDS
from caramba_core.plugins.metadata import ComponentEntry, Plugin
from caramba_core.plugins.registry import Registry
from caramba_plugins_tools.showing import hook_names, named_plugin, plugin_info, reported_as_broken

__all__ = ["check_plugins"]

_WIDTH: Final = 64
"""Input width at which components without required settings are built."""

_COLOURS: Final = {"ok": "green", "broken": "red", "skipped": None}


def check_plugins(registry: Registry, name: str | None) -> int:
    """Check one plugin, or all; print a line for each entry, and return how many are broken."""
    plugins = list(registry.plugins.values()) if name is None else [named_plugin(registry, name)]
    # All of them before the first build imports torch; modes, which may import it, last.
    entries = [entry for plugin in plugins if plugin.unusable is None for entry in _entries(plugin)]
    remarks = {entry: _load(registry, entry) for entry in sorted(entries, key=lambda entry: entry.kind == "mode")}
    broken = 0
    for plugin in plugins:
        typer.echo(typer.style(f"{plugin.name} {plugin.version}", bold=True))
        for word, text in _findings(registry, plugin, remarks):
            broken += word == "broken"
            typer.echo(f"  {typer.style(word, fg=_COLOURS[word])}{text}")
    typer.echo(f"\n{broken} broken" if broken else "\nall is well")
    return broken


def _entries(plugin: Plugin) -> tuple[ComponentEntry, ...]:
    return (*plugin.hooks, *plugin.components)


def _load(registry: Registry, entry: ComponentEntry) -> str:
    """Load an entry's light side, which the registry remembers, its failure too; a remark on it."""
    torch_before = "torch" in sys.modules
    try:
        registry.load(entry)
    except PluginError:
        return ""
    if entry.kind != "mode" and "torch" in sys.modules and not torch_before:
        return "  (imports torch, which slows listings and plans: import it where it is used)"
    return ""


def _findings(registry: Registry, plugin: Plugin, remarks: Mapping[ComponentEntry, str]) -> Iterator[tuple[str, str]]:
    """``ok``, ``broken`` or ``skipped``, and what is said of it: of the plugin as a whole, then of each entry."""
    problem = plugin.unusable
    if problem is not None:
        word = "skipped" if plugin.state == "disabled" else "broken"
        yield word, f": {problem.message}\n    hint: {problem.hint}"
        return
    for note in plugin.notes:
        yield "broken", f": {note.message}\n    hint: {note.hint}"
    for entry in _entries(plugin):
        try:
            target = registry.load(entry)
            done = _hooks(registry, plugin, entry) if entry.kind == "hooks" else _build(entry, target)
        except PluginError as error:
            registry.note_failure(entry, error)
            yield "broken", f"  {error}"
        else:
            yield "ok", f"      {entry.kind} {entry.name}{done}{remarks[entry]}"


def _hooks(registry: Registry, plugin: Plugin, entry: ComponentEntry) -> str:
    plugin_info(registry, plugin)  # which may be broken
    names = hook_names(registry, entry)
    return f": {', '.join(names)}" if names else ""


def _build(entry: ComponentEntry, config: Any) -> str:
    """Import what a config builds, and build it on the meta device where its defaults allow; what was done."""
    path = getattr(config, "builds", "")
    if not (isinstance(config, type) and path):
        return ""
    module_name, _, name = path.partition(":")
    with reported_as_broken(entry, f"what it builds, {path}, cannot be imported"):
        target = getattr(import_module(module_name), name)
    required = any(field.default is attrs.NOTHING for field in attrs.fields(config))
    if required or entry.kind not in LAYER_KINDS or entry.kind == "topology":
        return f": {name} imports"
    import torch

    with reported_as_broken(entry, f"building {path} with its defaults fails"), torch.device("meta"):
        try:
            target(config(), _WIDTH)
        except InvalidValue:  # the defaults do not fit this width, which is the component's right
            return f": {name} imports"
    return f": {name} imports and builds"
