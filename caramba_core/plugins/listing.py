"""What is installed, as data and as text; metadata only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from caramba_core import __version__
from caramba_core.kinds import KINDS, LAYER_KINDS
from caramba_core.plugins import API_VERSION
from caramba_core.plugins.metadata import CORE, ComponentEntry, Plugin, PluginProblem
from caramba_core.plugins.registry import Registry, State

__all__ = ["Listed", "as_data", "as_text", "clashes", "listing"]


@attrs.frozen(kw_only=True)
class Listed:
    """One plugin in a listing."""

    plugin: Plugin
    state: State
    problems: tuple[PluginProblem, ...]

    @property
    def name(self) -> str:
        """The short name: that of its hook module, else the distribution's."""
        return self.plugin.hooks[0].name if self.plugin.hooks else self.plugin.name

    def components(self) -> dict[str, tuple[str, ...]]:
        """Names of what it supplies, by kind, in the order of the kinds."""
        supplied = {kind: tuple(entry.name for entry in self.plugin.components if entry.kind == kind) for kind in KINDS}
        return {kind: names for kind, names in supplied.items() if names}


def listing(registry: Registry) -> tuple[Listed, ...]:
    """Every installed plugin, the core first, then by name."""
    plugins = sorted(registry.plugins.values(), key=lambda plugin: (plugin.name != CORE, plugin.name))
    rows = ((plugin, *registry.state(plugin)) for plugin in plugins)
    return tuple(Listed(plugin=plugin, state=state, problems=problems) for plugin, state, problems in rows)


def clashes(registry: Registry) -> dict[str, tuple[ComponentEntry, ...]]:
    """Components that need their qualified names, by ``kind name``: more than one usable distribution has the name."""
    claims: dict[tuple[str, str], list[ComponentEntry]] = {}
    for kind in KINDS:
        for entry in registry.entries(kind):
            place = (
                "layer" if kind in LAYER_KINDS else kind
            )  # layers of all kinds share one list, and so one name space
            claims.setdefault((place, entry.name), []).append(entry)
    return {
        f"{' or '.join(dict.fromkeys(entry.kind for entry in found))} {name}": tuple(found)
        for (_, name), found in claims.items()
        if len(found) > 1
    }


def as_data(registry: Registry) -> dict[str, Any]:
    """The listing as plain data."""
    return {
        "core": {"version": __version__, "api": API_VERSION},
        "plugins": [
            {
                "name": listed.name,
                "distribution": listed.plugin.name,
                "version": listed.plugin.version,
                "api": listed.plugin.api,
                "requires_core": listed.plugin.core_range,
                "state": listed.state,
                "problems": [attrs.asdict(problem) for problem in listed.problems],
                "components": {kind: list(names) for kind, names in listed.components().items()},
            }
            for listed in listing(registry)
        ],
        "clashes": {name: [entry.qualified for entry in entries] for name, entries in clashes(registry).items()},
    }


def as_text(registry: Registry, *, style: Any) -> str:
    """The listing for people; ``style(text, **how)`` colours a text."""
    lines = [f"plugin API {API_VERSION}"]
    for listed in listing(registry):
        lines += ["", *_plugin_lines(listed, style)]
    for name, entries in clashes(registry).items():
        qualified = " or ".join(entry.qualified for entry in entries)
        lines += ["", f"{style('clash', fg='yellow')}: {name} is supplied more than once; write {qualified}"]
    return "\n".join(lines)


def _plugin_lines(listed: Listed, style: Any) -> Iterable[str]:
    plugin = listed.plugin
    colour = {"ok": "green", "disabled": "yellow"}.get(listed.state, "red")
    versions = [f"API {plugin.api or 'not stated'}"]
    if plugin.name != CORE:
        versions.append(f"core {plugin.core_range or 'any'}")
    name = style(f"{plugin.name} {plugin.version}", bold=True)
    yield f"{name}  {style(listed.state, fg=colour)}  ({listed.name}; {', '.join(versions)})"
    yield from _aligned(listed.components())
    for problem in listed.problems:
        yield f"  {style('problem', fg='red')}: {problem.message.strip()}"
        if problem.hint:
            yield f"    hint: {problem.hint}"


def _aligned(components: Mapping[str, tuple[str, ...]]) -> Iterable[str]:
    widest = max(map(len, KINDS))
    for kind, names in components.items():
        yield f"  {kind:<{widest}}  {', '.join(names)}"
