"""The registry of components: who supplies what, known from metadata, imported only when asked for.

A name may be short (``mine``) or qualified (``my-plugin:mine``).  Two plugins that claim one short name are an
error that lists the qualified ones; the last installed never wins silently.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from typing import TYPE_CHECKING, Any

import attrs
from caramba_document.suggestions import article, listing, nearest, suggestion

from caramba_core.errors import InvalidValue, PluginError
from caramba_core.kinds import KINDS, Kind
from caramba_core.plugins import record
from caramba_core.plugins.loading import broken, import_entry
from caramba_core.plugins.metadata import CORE, DEFAULT, ComponentEntry, Plugin, State, installed, normalized

if TYPE_CHECKING:
    import pluggy

__all__ = ["DISABLE_VARIABLE", "Registry", "registry", "switch_off"]

DISABLE_VARIABLE = "CARAMBA_DISABLE_PLUGINS"


class Registry:
    """The installed plugins and their components; ``switched_off`` are names of distributions to leave out."""

    def __init__(self, plugins: Mapping[str, Plugin], switched_off: Collection[str] = ()) -> None:
        self.plugins = dict(plugins)
        for name in self.plugins.keys() & switched_off:
            hint = f"leave out --no-plugin {name}, or take it out of {DISABLE_VARIABLE}"
            reason = PluginError(f"{name} is switched off", hint=hint)
            self.plugins[name] = attrs.evolve(plugins[name], state="disabled", unusable=reason)
        self._loaded: dict[ComponentEntry, Any] = {}
        self._failed: dict[ComponentEntry, PluginError] = {}

    @cached_property
    def kinds(self) -> Mapping[str, Kind]:
        """Every kind by its name: the core's, then those that plugins declare."""
        declared = (entry for plugin in self.plugins.values() for entry in plugin.kinds)
        return {**KINDS, **{one.name: Kind(one.name, f"a kind of {one.distribution}", one.value) for one in declared}}

    @cached_property
    def hooks(self) -> pluggy.HookRelay:
        """The hooks of every usable plugin; the first use imports their hook modules."""
        from caramba_core.plugins.manager import load_hooks  # listings do without pluggy

        return load_hooks([entry for plugin in self.usable() for entry in plugin.hooks], self.load)

    @cached_property
    def _last_failures(self) -> dict[ComponentEntry, PluginError]:
        return record.last_failures()

    # -------------------------------------------------------------------------------------------- whole plugins

    def usable(self) -> tuple[Plugin, ...]:
        """The plugins that are neither switched off nor unfit for this core, in the order of names."""
        return tuple(plugin for plugin in self.plugins.values() if plugin.unusable is None)

    def state(self, plugin: Plugin) -> tuple[State, tuple[PluginError, ...]]:
        """A plugin's state and what is wrong with it, as far as metadata and the last load tell."""
        if plugin.unusable is not None:
            return plugin.state, () if plugin.state == "disabled" else (plugin.unusable,)
        problems = list(plugin.notes)
        for entry in (*plugin.hooks, *plugin.components):
            if entry in self._failed:
                problems.append(self._failed[entry])
            elif entry not in self._loaded and entry in self._last_failures:
                problems.append(self._last_failures[entry])
        return ("broken" if problems else "ok"), tuple(problems)

    def require(self, requirement: str) -> None:
        """Raise :class:`PluginError` where an entry of ``requires:`` (PEP 508, such as ``foo>=1.2``) is not met.

        One whose marker (``; python_version < "3.12"``) is about other environments is met.
        """
        from packaging.requirements import InvalidRequirement, Requirement  # listings do without the parser

        try:
            wanted = Requirement(requirement)
        except InvalidRequirement:
            expected = "a distribution with an optional version range, such as my-plugin>=0.1,<0.2"
            raise PluginError(f"{requirement!r} names no distribution", expected=expected) from None
        if wanted.marker is not None and not wanted.marker.evaluate():
            return
        name, said, install = normalized(wanted.name), f"the manifest requires {wanted}", f"pip install '{wanted}'"
        plugin = self.plugins.get(name)
        try:
            found = version(name) if plugin is None else plugin.version
        except PackageNotFoundError:
            near = nearest(name, self.plugins)
            hint = f"did you mean {near[0]!r}? Otherwise: {install}" if near else install
            raise PluginError(f"{said}, which is not installed", hint=hint) from None
        if not wanted.specifier.contains(found, prereleases=True):
            expected = f"{name}{wanted.specifier}"
            raise PluginError(f"{said}, but {name} {found} is installed", expected=expected, hint=install)
        if plugin is not None and plugin.unusable is not None:
            raise PluginError(f"{said}: {plugin.unusable.message}", hint=plugin.unusable.hint)

    # ------------------------------------------------------------------------------------------------ components

    def entries(self, kind: str) -> tuple[ComponentEntry, ...]:
        """Every usable component of a kind, by name, then distribution."""
        return self._usable_entries.get(kind, ())

    @cached_property
    def _usable_entries(self) -> Mapping[str, tuple[ComponentEntry, ...]]:
        entries = sorted(entry for plugin in self.usable() for entry in plugin.components)
        return {kind: tuple(found) for kind, found in groupby(entries, key=lambda entry: entry.kind)}

    def find(self, kinds: Sequence[str], name: str) -> ComponentEntry:
        """The component with a short or qualified name among these kinds; :class:`PluginError` unless there is one."""
        distribution, colon, short = name.rpartition(":")
        entries = [entry for kind in kinds for entry in self.entries(kind)]
        found = [entry for entry in entries if entry.name == short]
        if colon:
            found = [entry for entry in found if entry.distribution == normalized(distribution)]
        if not found:
            raise self._unknown(kinds, name, entries)
        return _only(found, f"the {' or '.join(kinds)} {name!r}", "write the qualified name")

    def default(self, kind: str) -> Any:
        """What stands where a manifest names no component of a kind: the one that a plugin lists as ``default``.

        Raises :class:`PluginError` unless exactly one usable plugin does.
        """
        entry = self._meant(kind, DEFAULT, f"the default {kind}")
        if entry is None:
            suppliers = {name for known in self._catalogues() for name in known.get(kind, {}).values()}
            missing = sorted(suppliers - self.plugins.keys())
            raise PluginError(
                f"no installed plugin says which {kind} is the default",
                expected=f"{kind}: in the manifest, or a plugin with a default",
                hint=f"pip install {' or '.join(missing)}" if missing else None,
            )
        try:
            return self.load(entry)()
        except (TypeError, InvalidValue) as error:
            raise broken(entry, f"the default {kind} cannot do without settings: {error}") from error

    def suffixes(self, kind: str) -> tuple[str, ...]:
        """The suffixes of file names that stand for components of a kind."""
        entries = (entry for plugin in self.plugins.values() for entry in plugin.entries if entry.kind == kind)
        return tuple(sorted({entry.name for entry in entries if entry.name.startswith(".")}))

    def for_suffix(self, kind: str, file_name: str) -> ComponentEntry | None:
        """The component that a bare file name stands for; ``None`` where no plugin lists its suffix.

        Raises :class:`PluginError` where several do.
        """
        suffix = max(filter(file_name.endswith, self.suffixes(kind)), key=len, default="")
        return self._meant(kind, suffix, f"the {kind} of {suffix} files") if suffix else None

    def _meant(self, kind: str, alias: str, what: str) -> ComponentEntry | None:
        """The component behind an alias of a kind, if a plugin has it; raises where none can be used, or several."""
        claims = [(plugin, entry) for plugin in self.plugins.values() if (entry := plugin.meant(kind, alias))]
        usable = [entry for plugin, entry in claims if plugin.unusable is None]
        for plugin, _ in claims:
            if plugin.unusable is not None and not usable:
                raise _refused(what, plugin.unusable)
        return _only(usable, what, "write one of them in the manifest") if usable else None

    def name_of(self, component: type) -> str:
        """The name under which a component's class is registered; of several, the one that is the class's own."""
        value = f"{component.__module__}:{component.__qualname__}"
        names = [entry.name for kind in self.kinds for entry in self.entries(kind) if entry.value == value]
        alike = [name for name in names if name.replace("_", "") == component.__name__.lower()]
        return (*alike, *names, component.__qualname__)[0]

    def command_help(self, entry: ComponentEntry) -> str | None:
        """What ``--help`` says of a command, if its plugin says it."""
        known = self.plugins[entry.distribution].entries
        return next((one.name for one in known if one.kind == "command_help" and one.value == entry.value), None)

    def load(self, entry: ComponentEntry) -> Any:
        """Import a component's object; the second time it is remembered, also if it failed."""
        if entry in self._failed:
            raise self._failed[entry]
        plugin = self.plugins[entry.distribution]
        for failure in filter(None, map(self._failed.get, plugin.hooks)):
            raise _refused(str(entry), failure)
        if entry not in self._loaded:
            try:
                self._loaded[entry] = import_entry(entry, plugin, self.kinds.get(entry.kind))
            except PluginError as error:
                self.note_failure(entry, error)
                raise
            record.note(entry, None)
        return self._loaded[entry]

    def note_failure(self, entry: ComponentEntry, error: PluginError) -> None:
        """Take an entry as broken from here on."""
        self._loaded.pop(entry, None)
        self._failed[entry] = error
        record.note(entry, error)

    def supplier(self, kinds: Sequence[str], name: str) -> str | None:
        """The distribution that is known to supply a component, installed or not."""
        known = (catalogue.get(kind, {}).get(name) for catalogue in self._catalogues() for kind in kinds)
        return next(filter(None, known), None)

    def _catalogues(self) -> Iterator[Mapping[str, Mapping[str, str]]]:
        """What plugins know of who supplies what: kind, component, distribution."""
        for entry in (entry for plugin in self.usable() for entry in plugin.entries if entry.kind == "catalogue"):
            with suppress(PluginError):  # a broken catalogue only makes a message less helpful
                yield self.load(entry)

    def _unknown(self, kinds: Sequence[str], name: str, entries: Sequence[ComponentEntry]) -> PluginError:
        """What to say of a name that no usable plugin gives these kinds."""
        what = f"{' or '.join(kinds)} {name!r}"
        distribution, _, short = name.rpartition(":")
        for plugin in self.plugins.values():
            supplies = any(entry.kind in kinds and entry.name == short for entry in plugin.components)
            if plugin.unusable is not None and supplies and distribution in ("", plugin.name):
                return _refused(f"the {what}", plugin.unusable)
        known = sorted({entry.qualified if distribution else entry.name for entry in entries})
        others = [kind for kind in self.kinds if any(entry.name == name for entry in self.entries(kind))]
        supplier = self.supplier(kinds, short)
        if supplier is not None and supplier not in self.plugins and distribution in ("", supplier):
            hint = f"it is supplied by {supplier}, which is not installed: pip install {supplier}"
        elif near := nearest(name, known) or [entry.qualified for entry in entries if entry.name == short]:
            return PluginError(f"there is no {what}{suggestion(near)}")
        elif others:
            hint = f"{name} is {article(others[0])}, which cannot stand here"
        elif "://" in name:
            hint = "an address is fetched where a checkpoint is named; here the name of a file or of a component stands"
        elif distribution and normalized(distribution) not in self.plugins:
            hint = f"{distribution} is not installed: pip install {distribution}"
        else:
            hint = "caramba plugins list shows what is installed; if a plugin supplies it, pip install that plugin"
        expected = listing(known) if known else "a distribution that supplies one; none is installed"
        return PluginError(f"there is no {what}", expected=expected, hint=hint)


def _refused(what: str, reason: PluginError) -> PluginError:
    return PluginError(f"{what} cannot be used: {reason.message}", hint=reason.hint)


def _only(found: Sequence[ComponentEntry], what: str, choice: str) -> ComponentEntry:
    """The one component that was found; :class:`PluginError` where distributions compete for it."""
    if len(found) == 1:
        return found[0]
    claims = ", ".join(f"{entry.distribution} {entry.version}" for entry in found)
    switches = " or ".join(f"--no-plugin {entry.distribution}" for entry in found if entry.distribution != CORE)
    raise PluginError(
        f"{what} is supplied by more than one distribution: {claims}",
        expected=" or ".join(entry.qualified for entry in found),
        hint=f"{choice}, or switch one off: {switches}",
    )


# ----------------------------------------------------------------------------------------------- of this process


@cache
def registry() -> Registry:
    """The registry of this process, without the distributions that are switched off."""
    return Registry(installed(), _switched_off())


def switch_off(names: Iterable[str]) -> None:
    """Switch distributions off for this process and its children; :class:`PluginError` where one cannot be."""
    plugins = registry().plugins
    for name in names:
        if normalized(name) not in plugins:
            near = suggestion(nearest(normalized(name), plugins))
            raise PluginError(f"--no-plugin: no plugin {name!r} is installed{near}", expected=listing(plugins))
        if normalized(name) == CORE:
            raise PluginError(f"--no-plugin: {CORE} cannot be switched off")
    os.environ[DISABLE_VARIABLE] = ",".join(sorted({*_switched_off(), *map(normalized, names)}))
    registry.cache_clear()


def _switched_off() -> frozenset[str]:
    named = os.environ.get(DISABLE_VARIABLE, "").split(",")
    return frozenset(normalized(name) for name in named if name.strip()) - {CORE}
