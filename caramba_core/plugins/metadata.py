"""Installed plugins as their metadata tells, without importing any of them.

A distribution is a plugin if it has an entry point in the group ``caramba`` (hooks) or in a group ``caramba.<kind>``
(components).  Two more groups are data about the plugin itself: ``caramba.api`` (the name of its one entry is the
version of the plugin API that it was written for) and ``caramba.catalogue`` (which distributions supply which
components).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

import attrs
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from caramba_core import __version__ as core_version
from caramba_core.kinds import HOOKS_GROUP, KINDS
from caramba_core.plugins import API_VERSION
from caramba_core.suggestions import nearest

__all__ = [
    "API_GROUP",
    "CATALOGUE_GROUP",
    "CORE",
    "ComponentEntry",
    "Plugin",
    "PluginProblem",
    "installed",
    "normalized",
]

API_GROUP = f"{HOOKS_GROUP}.api"
CATALOGUE_GROUP = f"{HOOKS_GROUP}.catalogue"
CORE = "caramba-core"
_CORE_HOOKS = "caramba_core.plugin"
"""The hook module by which the core's own distribution is known."""

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.\-]*[A-Za-z0-9_])?")
_OBJECT = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?::[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)?")
_REQUIREMENT = re.compile(r"([A-Za-z0-9._\-]+)\s*(?:\[[^\]]*\])?\s*\(?([^;)@]*)\)?\s*(?:;.*)?")


@attrs.frozen(order=True)
class ComponentEntry:
    """One entry point: a component's ``kind`` and ``name``, who supplies it, and the import path of its object.

    A hook module has the kind ``hooks``.
    """

    kind: str
    name: str
    distribution: str
    version: str
    value: str

    @property
    def qualified(self) -> str:
        """The name that is never ambiguous."""
        return f"{self.distribution}:{self.name}"

    def __str__(self) -> str:
        return f"{self.kind} {self.qualified}"


@attrs.frozen
class PluginProblem:
    """Why a plugin, or a part of it, cannot be used, and what to do about it."""

    message: str
    hint: str


@attrs.frozen(kw_only=True)
class Plugin:
    """One installed distribution that plugs into caramba, as far as metadata tells.

    ``core_range`` is the version range of the core that it requires, ``api`` the plugin API that it says it was written
    for.  ``incompatible`` and ``damaged`` say why nothing of it can be used; ``notes`` are faults of single entries.
    """

    name: str
    version: str
    core_range: str | None = None
    api: str | None = None
    hooks: tuple[ComponentEntry, ...] = ()
    components: tuple[ComponentEntry, ...] = ()
    catalogues: tuple[ComponentEntry, ...] = ()
    requirements: tuple[str, ...] = ()
    incompatible: PluginProblem | None = None
    damaged: PluginProblem | None = None
    notes: tuple[PluginProblem, ...] = ()


def normalized(name: str) -> str:
    """A distribution's name in the one spelling that compares equal (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def installed() -> dict[str, Plugin]:
    """Every plugin on ``sys.path`` by its normalized name, in the order of names.

    Of several distributions with one name the first on ``sys.path`` counts, as for ``import``.
    """
    plugins: dict[str, Plugin] = {}
    places: dict[str, str] = {}
    stale: dict[str, set[str]] = {}
    mimics: dict[str, Plugin] = {}
    for distribution in distributions():
        plugin = _read(distribution)
        if plugin is None:
            continue
        place = str(distribution.locate_file(""))
        if plugin.name == CORE and _CORE_HOOKS not in {entry.value for entry in plugin.hooks}:
            mimics[place] = plugin
            continue
        first = plugins.setdefault(plugin.name, plugin)
        if first is plugin:
            places[plugin.name] = place
        elif places[plugin.name] == place and plugin.version not in {first.version, *stale.get(plugin.name, ())}:
            stale.setdefault(plugin.name, set()).add(plugin.version)
            problem = PluginProblem(
                f"{plugin.name} has metadata of two versions side by side: {first.version} and {plugin.version}",
                f"pip uninstall {plugin.name} (until pip says it is not installed), then pip install {plugin.name}",
            )
            if plugin.name == CORE:  # without which nothing could say so
                plugins[CORE] = attrs.evolve(first, notes=(*first.notes, problem))
            else:  # nobody knows which of the two the files belong to
                plugins[plugin.name] = attrs.evolve(first, damaged=problem)
    for place, mimic in mimics.items():
        problem = PluginProblem(
            f"{place} holds another distribution that calls itself {CORE}, version {mimic.version}: it is left out",
            f"pip uninstall {CORE}, until pip says that it is not installed, then pip install {CORE}",
        )
        if CORE in plugins:
            plugins[CORE] = attrs.evolve(plugins[CORE], notes=(*plugins[CORE].notes, problem))
    return dict(sorted(plugins.items()))


def _read(distribution: Distribution) -> Plugin | None:
    """The plugin that a distribution is, if it is one."""
    try:
        text = distribution.read_text("entry_points.txt")
    except (UnicodeDecodeError, OSError):
        text = None
    if text is None or f"[{HOOKS_GROUP}" not in text:
        return None
    fields = _headers(distribution)
    # Where METADATA is gone, only the folder tells a name.
    folder = Path(str(getattr(distribution, "_path", "unknown")))
    name = normalized(fields.get("name", [folder.name.partition("-")[0]])[0])
    version = fields.get("version", ["unknown"])[0]
    damage = None
    if "name" not in fields or "version" not in fields:
        damage = PluginProblem(
            f"the metadata of {name} has no name or version: it is half uninstalled",
            f"pip install --force-reinstall {name}, or delete the folder {folder}",
        )
    requirements = tuple(fields.get("requires-dist", ()))
    core_range = _core_range(requirements)
    groups: dict[str, list[ComponentEntry]] = {"hooks": [], "components": [], "catalogues": []}
    notes: list[PluginProblem] = []
    api: str | None = None
    seen: set[tuple[str, str]] = set()
    for group, entry_name, value in _entry_points(text):
        kind = "hooks" if group == HOOKS_GROUP else group.removeprefix(f"{HOOKS_GROUP}.")
        entry = ComponentEntry(kind, entry_name, name, version, value)
        if group == API_GROUP:
            api = entry_name
            continue
        fault = _fault(entry, group)
        if (kind, entry_name) in seen:
            fault = PluginProblem(f"{entry} is declared twice", "give each component a name of its own")
        seen.add((kind, entry_name))
        if fault is not None:
            notes.append(fault)
        elif group == HOOKS_GROUP:
            groups["hooks"].append(entry)
        elif group == CATALOGUE_GROUP:
            groups["catalogues"].append(entry)
        else:
            groups["components"].append(entry)
    return Plugin(
        name=name,
        version=version,
        core_range=core_range,
        api=API_VERSION if name == CORE else api,
        hooks=tuple(sorted(groups["hooks"])),
        components=tuple(sorted(groups["components"])),
        catalogues=tuple(sorted(groups["catalogues"])),
        requirements=requirements,
        incompatible=None if damage else _incompatible(name, version, core_range, api),
        damaged=damage,
        notes=tuple(notes),
    )


def _headers(distribution: Distribution) -> dict[str, list[str]]:
    """The header fields of METADATA that matter here; the email parser takes a millisecond a plugin."""
    try:
        text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    except (UnicodeDecodeError, OSError):
        return {}
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        if not line:
            break
        field, colon, value = line.partition(":")
        if colon and field.lower() in ("name", "version", "requires-dist"):
            fields.setdefault(field.lower(), []).append(value.strip())
    return fields


def _entry_points(text: str) -> Iterator[tuple[str, str, str]]:
    """``(group, name, value)`` of every entry point in a group of caramba's."""
    group = ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("["):
            group = line.strip("[]").strip()
        elif line and line[0] not in "#;" and (group == HOOKS_GROUP or group.startswith(f"{HOOKS_GROUP}.")):
            name, _, value = line.partition("=")
            yield group, name.strip(), value.strip()


def _fault(entry: ComponentEntry, group: str) -> PluginProblem | None:
    """What is wrong with an entry point by its looks."""
    kinds = ("hooks", "catalogue", *KINDS)
    if entry.kind not in kinds:
        near = nearest(entry.kind, KINDS)
        meant = f"did you mean {HOOKS_GROUP}.{near[0]}?" if near else f"kinds are {', '.join(KINDS)}"
        return PluginProblem(f"{entry.distribution} has entry points in the group {group}, which is no kind", meant)
    if not _NAME.fullmatch(entry.name):
        return PluginProblem(
            f"{entry.distribution} calls a component of the kind {entry.kind} {entry.name!r}, which is no name",
            "use letters, digits, '_', '.' and '-', without spaces",
        )
    if not _OBJECT.fullmatch(entry.value) or (":" not in entry.value and entry.kind != "hooks"):
        return PluginProblem(
            f"{entry} points to {entry.value!r}, which is not an import path",
            "write package.module:Name in the plugin's pyproject.toml",
        )
    return None


def _core_range(requirements: tuple[str, ...]) -> str | None:
    """The range of core versions that a plugin's requirements allow, as written."""
    for requirement in requirements:
        match = _REQUIREMENT.fullmatch(requirement)
        if match is not None and normalized(match[1]) == CORE and "extra ==" not in requirement:
            return match[2].replace(" ", "") or None
    return None


def _incompatible(name: str, version: str, core_range: str | None, api: str | None) -> PluginProblem | None:
    """Why this plugin cannot work with this core, from the versions alone."""
    if name == CORE:
        return None
    if core_range is not None:
        try:
            fits = SpecifierSet(core_range).contains(Version(core_version), prereleases=True)
        except (InvalidSpecifier, InvalidVersion):
            return PluginProblem(
                f"{name} {version} requires {CORE}{core_range}, which is no version range",
                f"pip install --upgrade {name}",
            )
        if not fits:
            return PluginProblem(
                f"{name} {version} requires {CORE} {core_range}, but {CORE} {core_version} is installed",
                f"pip install --upgrade {name}, or pip install '{CORE}{core_range}'",
            )
    if api is not None and api.partition(".")[0] != API_VERSION.partition(".")[0]:
        return PluginProblem(
            f"{name} {version} was written for version {api} of the plugin API, "
            f"but {CORE} {core_version} has version {API_VERSION}",
            f"pip install --upgrade {name}, or a {CORE} whose plugin API has the version {api.partition('.')[0]}",
        )
    return None
