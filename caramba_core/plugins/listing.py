"""What is installed, as data and as text; metadata only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from caramba_core import __version__
from caramba_core.kinds import LAYER_KINDS
from caramba_core.plugins import API_VERSION
from caramba_core.plugins.metadata import CORE, ComponentEntry
from caramba_core.plugins.registry import Registry

__all__ = ["as_data", "as_text"]


def as_data(registry: Registry) -> dict[str, Any]:
    """The listing as plain data: every installed plugin, the core first, then by name."""
    plugins = []
    for plugin in sorted(registry.plugins.values(), key=lambda plugin: (plugin.name != CORE, plugin.name)):
        state, problems = registry.state(plugin)
        components = {kind: [one.name for one in plugin.components if one.kind == kind] for kind in registry.kinds}
        plugins.append(
            {
                "distribution": plugin.name,
                "version": plugin.version,
                "api": plugin.api,
                "requires_core": plugin.core_range,
                "state": state,
                "problems": [{"message": one.message, "hint": one.hint or ""} for one in problems],
                "components": {kind: names for kind, names in components.items() if names},
            }
        )
    return {
        "core": {"version": __version__, "api": API_VERSION},
        "plugins": plugins,
        "clashes": {name: [entry.qualified for entry in entries] for name, entries in _clashes(registry)},
    }


def _clashes(registry: Registry) -> Iterable[tuple[str, list[ComponentEntry]]]:
    """Components that need their qualified names, as ``kind name``: several usable distributions have the name."""
    claims: dict[tuple[str, str], list[ComponentEntry]] = {}
    for entry in (entry for kind in registry.kinds for entry in registry.entries(kind)):
        place = "layer" if entry.kind in LAYER_KINDS else entry.kind  # layers of all kinds may stand in one list
        claims.setdefault((place, entry.name), []).append(entry)
    for (_, name), found in claims.items():
        if len(found) > 1:
            yield f"{' or '.join(dict.fromkeys(entry.kind for entry in found))} {name}", found


def as_text(registry: Registry, *, style: Any) -> str:
    """The listing for people; ``style(text, **how)`` colours a text."""
    listed = as_data(registry)
    lines = [f"plugin API {API_VERSION}"]
    for plugin in listed["plugins"]:
        lines += ["", *_plugin_lines(plugin, style)]
    for name, qualified in listed["clashes"].items():
        claims = " or ".join(qualified)
        lines += ["", f"{style('clash', fg='yellow')}: {name} is supplied more than once; write {claims}"]
    return "\n".join(lines)


def _plugin_lines(plugin: dict[str, Any], style: Any) -> Iterable[str]:
    colour = {"ok": "green", "disabled": "yellow"}.get(plugin["state"], "red")
    about = f"API {plugin['api'] or 'not stated'}"
    if plugin["distribution"] != CORE:
        about += f", core {plugin['requires_core'] or 'any'}"
    name = style(f"{plugin['distribution']} {plugin['version']}", bold=True)
    yield f"{name}  {style(plugin['state'], fg=colour)}  ({about})"
    for kind, names in plugin["components"].items():
        yield f"  {kind:<10}  {', '.join(names)}"
    for problem in plugin["problems"]:
        yield f"  {style('problem', fg='red')}: {problem['message'].strip()}"
        if problem["hint"]:
            yield f"    hint: {problem['hint']}"
