"""``plugins show`` tells what a plugin is; ``plugins check`` imports all that plugins name, and builds what it can."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import metadata
from typing import Any, Final

import attrs
import typer
from caramba_document.suggestions import listing, nearest

from caramba_core.errors import InvalidValue, PluginError
from caramba_core.hookspecs import implementations
from caramba_core.kinds import LAYER_KINDS
from caramba_core.plugins.guard import import_guarded, plugin_code, what_was_raised
from caramba_core.plugins.metadata import ComponentEntry, Plugin, normalized
from caramba_core.plugins.registry import Registry
from caramba_plugins_tools.explain import explain_entry, render
from caramba_plugins_tools.extras import extras_of

__all__ = ["check_plugins", "show_plugin"]

_WIDTH: Final = 64
"""Input width at which components without required settings are built."""

_COLOURS: Final = {"ok": "green", "broken": "red", "skipped": None}


# ------------------------------------------------------------------------------------------------ showing


def show_plugin(registry: Registry, name: str) -> None:
    """Print what ``plugins show NAME`` tells."""
    plugin = _named(registry, name)
    state, problems = registry.state(plugin)
    typer.echo(f"{typer.style(f'{plugin.name} {plugin.version}', bold=True)}  {state}")
    for problem in problems:
        typer.echo(f"  problem: {problem.message}\n    hint: {problem.hint}")
    if plugin.unusable is not None:
        return
    for line in _about(registry, plugin):
        typer.echo(f"  {line}")
    for entry in plugin.components:
        typer.echo()
        try:
            render([explain_entry(registry, entry)])
        except PluginError as error:
            typer.echo(f"{entry.kind} {entry.name}\n  problem: {error}")


def _about(registry: Registry, plugin: Plugin) -> Iterable[str]:
    """What the distribution's metadata says: what it is, where it is documented, and which of its extras are there."""
    about = metadata(plugin.name)
    if about["Summary"]:
        yield about["Summary"]
    for address in about.get_all("Project-URL", ()):
        yield address.replace(", ", ": ", 1)
    for extra in extras_of(plugin):
        told = f"missing {', '.join(extra.missing)}: {extra.command}" if extra.missing else "installed"
        yield f"extra {extra.name}: {told}"
    for entry in plugin.hooks:
        try:
            yield f"hooks: {', '.join(_hook_names(registry, entry))}"
        except PluginError as error:
            yield f"problem: {error}"


# ------------------------------------------------------------------------------------------------ checking


def check_plugins(registry: Registry, name: str | None) -> int:
    """Check one plugin, or all; print a line for each entry, and return how many are broken."""
    plugins = list(registry.plugins.values()) if name is None else [_named(registry, name)]
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
            done = _hooks(registry, entry) if entry.kind == "hooks" else _build(entry, target)
        except PluginError as error:
            registry.note_failure(entry, error)
            yield "broken", f"  {error}"
        else:
            yield "ok", f"      {entry.kind} {entry.name}{done}{remarks[entry]}"


def _hooks(registry: Registry, entry: ComponentEntry) -> str:
    names = _hook_names(registry, entry)
    return f": {', '.join(names)}" if names else ""


def _build(entry: ComponentEntry, config: Any) -> str:
    """Import what a config builds, and build it on the meta device where its defaults allow; what was done."""
    path = getattr(config, "builds", "")
    if not (isinstance(config, type) and path):
        return ""
    module_name, _, name = path.partition(":")
    with _reported_as_broken(entry, f"what it builds, {path}, cannot be imported"):
        target = getattr(import_guarded(module_name, f"{entry.distribution} {entry.version}"), name)
    required = any(field.default is attrs.NOTHING for field in attrs.fields(config))
    if required or entry.kind not in LAYER_KINDS or entry.kind == "topology":
        return f": {name} imports"
    import torch

    with _reported_as_broken(entry, f"building {path} with its defaults fails"), torch.device("meta"):
        try:
            target(config(), _WIDTH)
        except InvalidValue:  # the defaults do not fit this width, which is the component's right
            return f": {name} imports"
    return f": {name} imports and builds"


# ------------------------------------------------------------------------------------------------ both


def _named(registry: Registry, name: str) -> Plugin:
    """The plugin that a user means by a distribution's name, or by the end of it: ``dba``."""
    wanted = normalized(name)
    found = [plugin for known, plugin in registry.plugins.items() if known == wanted or known.endswith(f"-{wanted}")]
    if found:
        return registry.plugins.get(wanted, found[0])
    near = nearest(wanted, registry.plugins)
    raise PluginError(
        f"no plugin {name!r} is installed",
        expected=listing(registry.plugins),
        hint=f"did you mean {near[0]!r}?" if near else f"pip install {name}",
    )


@contextmanager
def _reported_as_broken(entry: ComponentEntry, what: str) -> Iterator[None]:
    """Whatever a plugin's own code raises, as a :class:`PluginError` that says ``what`` failed."""
    try:
        with plugin_code(quiet=True):
            yield
    except Exception as error:
        raised = what_was_raised(error)
        said = f"{type(raised).__name__}: {raised}"
        raise PluginError(f"{entry} {entry.version} is broken: {what}: {said}") from error


def _hook_names(registry: Registry, entry: ComponentEntry) -> tuple[str, ...]:
    """The hooks that a hook module takes part in."""
    return tuple(hook for _, hook, _ in implementations(registry.load(entry)))
