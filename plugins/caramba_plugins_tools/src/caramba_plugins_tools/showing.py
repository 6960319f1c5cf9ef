"""``plugins show``: what a plugin's metadata says, and its components with their fields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, metadata, version
from typing import Any

from caramba_core.errors import PluginError
from caramba_core.hookspecs import implementations
from caramba_core.plugins.metadata import ComponentEntry, Plugin, extra_of, normalized, required
from caramba_core.plugins.registry import Registry
from caramba_core.suggestions import listing, nearest
from caramba_plugins_tools.explain import explain_entry

__all__ = ["hook_names", "named_plugin", "reported_as_broken", "shown"]


def named_plugin(registry: Registry, name: str) -> Plugin:
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
def reported_as_broken(entry: ComponentEntry, what: str) -> Iterator[None]:
    """Whatever a plugin's own code raises, as a :class:`PluginError` that says ``what`` failed."""
    try:
        yield
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {error}"
        raise PluginError(f"{entry} {entry.version} is broken: {what}: {said}") from error


def hook_names(registry: Registry, entry: ComponentEntry) -> tuple[str, ...]:
    """The hooks that a hook module takes part in."""
    return tuple(hook for _, hook, _ in implementations(registry.load(entry)))


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
    """What the distribution's metadata says: what it is, where it is documented, and which of its extras are there."""
    about = metadata(plugin.name)
    if about["Summary"]:
        yield f"  {about['Summary']}"
    for address in about.get_all("Project-URL", ()):
        yield f"  {address.replace(', ', ': ', 1)}"
    for extra in about.get_all("Provides-Extra", ()):
        wanted = [required(one)[0] for one in plugin.requirements if extra_of(one) == extra]
        if plugin.name in wanted:  # made of others, which speak for themselves
            continue
        missing = [name for name in wanted if not _is_installed(name)]
        told = f"missing {', '.join(missing)}: pip install '{plugin.name}[{extra}]'" if missing else "installed"
        yield f"  extra {extra}: {told}"
    for entry in plugin.hooks:
        try:
            yield f"  hooks: {', '.join(hook_names(registry, entry))}"
        except PluginError as error:
            yield f"  problem: {error}"


def _is_installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


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
