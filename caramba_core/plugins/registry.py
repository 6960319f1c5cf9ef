"""The registry of components: who supplies what, known from metadata, imported only when asked for.

A name may be short (``dba``) or qualified (``caramba-plugins-dba:dba``).  Two plugins that claim one short name are an
error that lists the qualified ones; the last installed never wins silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any, Literal

import attrs

from caramba_core.errors import PluginError
from caramba_core.kinds import KINDS
from caramba_core.plugins import record, switches
from caramba_core.plugins.loading import import_entry
from caramba_core.plugins.metadata import CORE, ComponentEntry, Plugin, PluginProblem, installed, normalized
from caramba_core.plugins.requirements import check_requirement
from caramba_core.plugins.switches import DISABLE_VARIABLE, disabled
from caramba_core.suggestions import listing, nearest

__all__ = ["ComponentEntry", "Registry", "State", "registry", "switch_off"]

State = Literal["ok", "disabled", "incompatible", "broken"]


class Registry:
    """The installed plugins and their components."""

    def __init__(self, plugins: Mapping[str, Plugin], switched_off: frozenset[str] = frozenset()) -> None:
        self.plugins = dict(plugins)
        self._switched_off = switched_off
        self._loaded: dict[ComponentEntry, Any] = {}
        self._failed: dict[ComponentEntry, PluginError] = {}

    @cached_property
    def _remembered(self) -> dict[str, PluginProblem]:
        return record.last_failures()

    # -------------------------------------------------------------------------------------------- whole plugins

    def usable(self) -> tuple[Plugin, ...]:
        """The plugins that are neither switched off nor unfit for this core, in the order of names."""
        return tuple(plugin for plugin in self.plugins.values() if self.unusable(plugin) is None)

    def unusable(self, plugin: Plugin) -> PluginProblem | None:
        """Why nothing of a plugin can be used, if so."""
        if plugin.name in self._switched_off:
            return PluginProblem(
                f"{plugin.name} is switched off",
                f"leave out --no-plugin {plugin.name}, or take it out of {DISABLE_VARIABLE}",
            )
        return plugin.incompatible or plugin.damaged

    def state(self, plugin: Plugin) -> tuple[State, tuple[PluginProblem, ...]]:
        """A plugin's state and what is wrong with it, as far as metadata and the last load tell."""
        if plugin.name in self._switched_off:
            return "disabled", ()
        if plugin.incompatible is not None:
            return "incompatible", (plugin.incompatible,)
        if plugin.damaged is not None:
            return "broken", (plugin.damaged,)
        problems = list(plugin.notes)
        remembered = self._remembered
        for entry in (*plugin.hooks, *plugin.components):
            seen = self._failed.get(entry)
            if seen is not None:
                problems.append(PluginProblem(seen.message, seen.hint or ""))
            elif entry not in self._loaded:
                last = record.failure(entry, remembered)
                if last is not None:
                    again = f"caramba plugins check {plugin.name} tries it again"
                    problems.append(attrs.evolve(last, hint=f"{last.hint}; {again}" if last.hint else again))
        return ("broken" if problems else "ok"), tuple(problems)

    def require(self, requirement: str) -> None:
        """Raise :class:`PluginError` where an entry of ``requires:`` (PEP 508, such as ``foo>=1.2``) is not met."""
        check_requirement(requirement, self.plugins, self._switched_off)

    # ------------------------------------------------------------------------------------------------ components

    def entries(self, kind: str) -> tuple[ComponentEntry, ...]:
        """Every usable component of a kind, by name, then distribution."""
        assert kind in KINDS, f"{kind!r} is no kind"
        found = (entry for plugin in self.usable() for entry in plugin.components if entry.kind == kind)
        return tuple(sorted(found, key=lambda entry: (entry.name, entry.distribution)))

    def find(self, kinds: Sequence[str], name: str) -> ComponentEntry:
        """The component with a short or qualified name among these kinds; :class:`PluginError` unless there is one."""
        distribution, colon, short = name.rpartition(":")
        entries = [entry for kind in kinds for entry in self.entries(kind)]
        found = [entry for entry in entries if entry.name == short]
        if colon:
            found = [entry for entry in found if entry.distribution == normalized(distribution)]
        if len(found) == 1:
            return found[0]
        if found:
            raise self._ambiguous(kinds, name, found)
        raise self._unknown(kinds, name, entries)

    def name_of(self, kind: str, component: type) -> str:
        """The name under which a component's class is registered: the short one, where several share the class."""
        value = f"{component.__module__}:{component.__qualname__}"
        return min((entry.name for entry in self.entries(kind) if entry.value == value), default=component.__qualname__)

    def load(self, entry: ComponentEntry) -> Any:
        """Import a component's object; the second time it is remembered, also if it failed."""
        if entry in self._failed:
            raise self._failed[entry]
        for hook in self.plugins[entry.distribution].hooks:
            if hook in self._failed and hook != entry:
                failure = self._failed[hook]
                raise PluginError(f"{entry} cannot be used: {failure.message}", hint=failure.hint)
        if entry not in self._loaded:
            try:
                self._loaded[entry] = import_entry(entry, self.plugins[entry.distribution])
            except PluginError as error:
                self.note_failure(entry, error)
                raise
            record.forget(entry)
        return self._loaded[entry]

    def note_failure(self, entry: ComponentEntry, error: PluginError) -> None:
        """Take an entry as broken from here on."""
        self._loaded.pop(entry, None)
        self._failed[entry] = error
        record.remember(entry, PluginProblem(error.message, error.hint or ""))

    def supplier(self, kinds: Sequence[str], name: str) -> str | None:
        """The distribution that is known to supply a component, installed or not."""
        for plugin in self.usable():
            for entry in plugin.catalogues:
                try:
                    catalogue: Mapping[str, Mapping[str, str]] = self.load(entry)
                except PluginError:  # a broken catalogue only makes a message less helpful
                    continue
                for kind in kinds:
                    if name in catalogue.get(kind, {}):
                        return catalogue[kind][name]
        return None

    # ---------------------------------------------------------------------------------------------------- errors

    def _ambiguous(self, kinds: Sequence[str], name: str, found: Sequence[ComponentEntry]) -> PluginError:
        claims = ", ".join(f"{entry.distribution} {entry.version}" for entry in found)
        if len({entry.qualified for entry in found}) < len(found):
            claimed = " and ".join(entry.kind for entry in found)
            return PluginError(
                f"{found[0].distribution} supplies {name!r} in several kinds: {claimed}",
                hint=f"this is a fault of {found[0].distribution}: each layer needs a name of its own",
            )
        return PluginError(
            f"the {_words(kinds)} {name!r} is supplied by more than one distribution: {claims}",
            expected=" or ".join(entry.qualified for entry in found),
            hint="write the qualified name, or switch one off: "
            + " or ".join(f"--no-plugin {entry.distribution}" for entry in found if entry.distribution != CORE),
        )

    def _unknown(self, kinds: Sequence[str], name: str, entries: Sequence[ComponentEntry]) -> PluginError:
        distribution, _, short = name.rpartition(":")
        for plugin in self.plugins.values():
            problem = self.unusable(plugin)
            supplies = any(entry.kind in kinds and entry.name == short for entry in plugin.components)
            if problem is not None and supplies and distribution in ("", plugin.name):
                return PluginError(
                    f"the {_words(kinds)} {name!r} cannot be used: {problem.message}",
                    hint=problem.hint,
                )
        known = [entry.qualified if distribution else entry.name for entry in entries]
        near = nearest(name, known) or [entry.qualified for entry in entries if distribution and entry.name == short]
        supplier = self.supplier(kinds, short)
        if supplier is not None and supplier not in self.plugins and distribution in ("", supplier):
            hint = f"it is supplied by {supplier}, which is not installed: pip install {supplier}"
        elif near:
            hint = f"did you mean {near[0]!r}?"
        elif distribution and normalized(distribution) not in self.plugins:
            hint = f"{distribution} is not installed: pip install {distribution}"
        else:
            hint = "caramba plugins list shows what is installed; if a plugin supplies it, pip install that plugin"
        return PluginError(
            f"there is no {_words(kinds)} {name!r}",
            expected=listing(sorted(set(known))) if known else "a distribution that supplies one; none is installed",
            hint=hint,
        )


def _words(kinds: Sequence[str]) -> str:
    return " or ".join(kinds)


@cache
def registry() -> Registry:
    """The registry of this process."""
    return Registry(installed(), disabled())


def switch_off(names: Sequence[str]) -> None:
    """Switch distributions off for this process and its children; :class:`PluginError` where one is not installed."""
    plugins = registry().plugins
    for name in names:
        if normalized(name) not in plugins:
            near = nearest(normalized(name), plugins)
            raise PluginError(
                f"--no-plugin: no plugin {name!r} is installed",
                expected=listing(plugins),
                hint=f"did you mean {near[0]!r}?" if near else None,
            )
        if normalized(name) == CORE:
            raise PluginError(f"--no-plugin: {CORE} cannot be switched off")
    switches.switch_off(names)
    registry.cache_clear()
