"""Installed plugins as their metadata tells, without importing any of them.

A distribution is a plugin if it has an entry point in the group ``caramba`` (hooks) or in a group ``caramba.<kind>``
(components).  Two sorts of names there are aliases of a component of the same distribution and kind: ``default`` says
that it is meant where a manifest names none, ``.npy`` that it is meant by the bare name of such a file.

Four more groups are about the plugin itself: in ``caramba.api`` the name of an entry is the version of the plugin API
that it was written for, ``caramba.kind`` lists kinds of component that it declares, ``caramba.catalogue`` says which
distributions supply which components, and in ``caramba.command_help`` the name of an entry is the line in ``--help`` of
the command with the same import path.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Literal

import attrs
from caramba_document.suggestions import nearest
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from caramba_core import __version__ as core_version
from caramba_core.errors import PluginError
from caramba_core.kinds import HOOKS_GROUP, KINDS, LAYER_KINDS
from caramba_core.plugins import API_VERSION

__all__ = [
    "CORE",
    "DEFAULT",
    "ComponentEntry",
    "Plugin",
    "State",
    "applies",
    "extra_of",
    "installed",
    "normalized",
    "required",
]

State = Literal["ok", "disabled", "incompatible", "broken"]

CORE = "caramba-core"
DEFAULT = "default"

_GROUPS = ("hooks", "api", "kind", "catalogue", "command_help")
_HEADER = re.compile(r"^(name|version|requires-dist):(.*)$", re.IGNORECASE | re.MULTILINE)
_NAME = re.compile(r"\.?[A-Za-z0-9_](?:[A-Za-z0-9_.\-]*[A-Za-z0-9_])?")
_OBJECT = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?::[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)?")
_EXTRA = re.compile(r"""\bextra\s*==\s*['"]([^'"]+)['"]""")
_REQUIREMENT = re.compile(r"([A-Za-z0-9._\-]+)\s*(?:\[[^\]]*\])?\s*\(?([^;)@]*)\)?\s*(?:;.*)?")


@attrs.frozen(order=True)
class ComponentEntry:
    """One entry point: a component's ``kind`` and ``name``, who supplies it, and the import path of its object.

    Entries that are no components have the last part of their group as kind; hook modules the kind ``hooks``.
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

    @property
    def is_alias(self) -> bool:
        """Whether the entry says when a component is meant, and is none of its own."""
        return self.kind not in _GROUPS and (self.name == DEFAULT or self.name.startswith("."))

    def __str__(self) -> str:
        return f"{self.kind} {self.qualified}"


@attrs.frozen(kw_only=True)
class Plugin:
    """One installed distribution that plugs into caramba, as its metadata describes it.

    ``place`` is the folder on ``sys.path`` that it was found in.  ``unusable`` says why nothing of it can be used, and
    ``state`` in which way; ``notes`` are faults of single entries, which are not among ``entries``.
    """

    name: str
    version: str
    place: str = ""
    entries: tuple[ComponentEntry, ...] = ()
    requirements: tuple[str, ...] = ()
    state: State = "ok"
    unusable: PluginError | None = None
    notes: tuple[PluginError, ...] = ()

    @property
    def hooks(self) -> tuple[ComponentEntry, ...]:
        """Its hook modules."""
        return tuple(entry for entry in self.entries if entry.kind == "hooks")

    @cached_property
    def components(self) -> tuple[ComponentEntry, ...]:
        """Its components, each once."""
        return tuple(entry for entry in self.entries if entry.kind not in _GROUPS and not entry.is_alias)

    @property
    def kinds(self) -> tuple[ComponentEntry, ...]:
        """The kinds of component that it declares."""
        return tuple(entry for entry in self.entries if entry.kind == "kind")

    def meant(self, kind: str, alias: str) -> ComponentEntry | None:
        """Its component of a kind that an alias stands for; ``None`` where it has no such alias."""
        values = {entry.value for entry in self.entries if (entry.kind, entry.name) == (kind, alias)}
        return next((one for one in self.components if one.kind == kind and one.value in values), None)

    @property
    def api(self) -> str | None:
        """The version of the plugin API that it was written for, if it says so."""
        return API_VERSION if self.name == CORE else next((e.name for e in self.entries if e.kind == "api"), None)

    @property
    def core_range(self) -> str | None:
        """The version range of the core that it requires, as written."""
        own = [required(one)[1] for one in self.requirements if required(one)[0] == CORE and applies(one)]
        return ",".join(filter(None, own)) or None


def normalized(name: str) -> str:
    """A distribution's name in the one spelling that compares equal (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def required(requirement: str) -> tuple[str, str]:
    """The normalized name and the version range, as written, of one of a distribution's requirements."""
    match = _REQUIREMENT.fullmatch(requirement)
    return ("", "") if match is None else (normalized(match[1]), match[2].replace(" ", ""))


def extra_of(requirement: str) -> str | None:
    """The extra that a distribution has a requirement for, if it is for one."""
    found = _EXTRA.search(requirement.partition(";")[2])
    return None if found is None else found[1]


def applies(requirement: str, extra: str = "") -> bool:
    """Whether a requirement is one in this environment, by its marker, with an ``extra`` or without."""
    marker = requirement.partition(";")[2]
    if not marker.strip():
        return True
    from packaging.markers import InvalidMarker, Marker  # few requirements have one

    try:
        return Marker(marker).evaluate({"extra": extra})
    except InvalidMarker:
        return True


def installed() -> dict[str, Plugin]:
    """Every plugin on ``sys.path`` by its normalized name, in the order of names."""
    copies: dict[str, list[Plugin]] = {}
    for distribution in distributions():
        plugin = _read(distribution)
        if plugin is not None:
            copies.setdefault(plugin.name, []).append(plugin)
    return _with_known_kinds([first for name in sorted(copies) if (first := _first(copies[name])) is not None])


def _with_known_kinds(plugins: Sequence[Plugin]) -> dict[str, Plugin]:
    """The plugins by name, without entries of unknown kinds; a kind belongs to the first plugin that declares it."""
    owners = dict.fromkeys(KINDS, CORE)
    for entry in (entry for plugin in plugins for entry in plugin.kinds):
        owners.setdefault(entry.name, entry.distribution)
    known: dict[str, Plugin] = {}
    for plugin in plugins:
        twice = [entry for entry in plugin.kinds if owners[entry.name] != plugin.name]
        notes = [PluginError(f"{entry} exists already", hint="give the kind another name") for entry in twice]
        foreign = [entry for entry in plugin.entries if entry.kind not in (*_GROUPS, *owners)]
        for kind in sorted({entry.kind for entry in foreign}):
            near = nearest(kind, owners)
            hint = f"did you mean {HOOKS_GROUP}.{near[0]}?" if near else f"kinds are {', '.join(owners)}"
            said = f"{plugin.name} has entry points in the group {HOOKS_GROUP}.{kind}, which is no kind"
            notes.append(PluginError(said, hint=hint))
        kept = tuple(entry for entry in plugin.entries if entry not in twice and entry not in foreign)
        known[plugin.name] = attrs.evolve(plugin, entries=kept, notes=(*plugin.notes, *notes))
    return known


def _first(copies: Sequence[Plugin]) -> Plugin | None:
    """Of the distributions with one name the first on ``sys.path``, as for ``import``, with what is wrong about it."""
    # The core's own distribution is known by its entries: another one may call itself so.
    own = __name__.partition(".")[0]
    real = [
        copy for copy in copies if copy.name != CORE or own in {one.value.partition(".")[0] for one in copy.entries}
    ]
    if not real:
        return None
    first, name = real[0], real[0].name
    again = f"pip uninstall {name}, until pip says that it is not installed, then pip install {name}"
    mimics = dict.fromkeys((copy.place, copy.version) for copy in copies if copy not in real)
    said = "{} holds another distribution that calls itself {}, version {}: it is left out"
    notes = [PluginError(said.format(place, name, version), hint=again) for place, version in mimics]
    versions = list(dict.fromkeys(copy.version for copy in real if copy.place == first.place))
    if len(versions) > 1:
        said = f"{name} has metadata of several versions side by side: {' and '.join(versions)}"
        if name != CORE:  # nobody knows which version the files are of; without the core nothing could say so
            return attrs.evolve(first, state="broken", unusable=PluginError(said, hint=again))
        notes.append(PluginError(said, hint=again))
    return attrs.evolve(first, notes=(*first.notes, *notes))


def _read(distribution: Distribution) -> Plugin | None:
    """The plugin that a distribution is, if it is one."""
    text = _text(distribution, "entry_points.txt")
    if f"[{HOOKS_GROUP}" not in text:
        return None
    headers = _headers(distribution)
    # Where METADATA is gone, only the folder tells a name.
    folder = Path(str(getattr(distribution, "_path", "unknown")))
    name = normalized(headers.get("name", [folder.name.partition("-")[0]])[0])
    version = headers.get("version", ["unknown"])[0]
    found = [ComponentEntry(kind, key, name, version, value) for kind, key, value in _entry_points(text)]
    faults = {entry: fault for entry in found if (fault := _fault(entry, found)) is not None}
    plugin = Plugin(
        name=name,
        version=version,
        place=str(distribution.locate_file("")),
        entries=tuple(sorted(set(found) - faults.keys())),
        requirements=tuple(headers.get("requires-dist", ())),
        notes=tuple(faults.values()),
    )
    state, unusable = _fitness(plugin)
    if not {"name", "version"} <= headers.keys():
        said = f"the metadata of {name} has no name or version: it is half uninstalled"
        hint = f"pip install --force-reinstall {name}, or delete the folder {folder}"
        state, unusable = "broken", PluginError(said, hint=hint)
    return attrs.evolve(plugin, state=state, unusable=unusable)


def _text(distribution: Distribution, file: str) -> str:
    """A file of a distribution's metadata; empty where there is none that can be read."""
    try:
        return distribution.read_text(file) or ""
    except (UnicodeDecodeError, OSError):
        return ""


def _headers(distribution: Distribution) -> dict[str, list[str]]:
    """The header fields of METADATA that matter here; the email parser takes a millisecond a plugin."""
    text = _text(distribution, "METADATA") or _text(distribution, "PKG-INFO")
    headers: dict[str, list[str]] = {}
    for field, value in _HEADER.findall(text.partition("\n\n")[0]):
        headers.setdefault(field.lower(), []).append(value.strip())
    return headers


def _entry_points(text: str) -> Iterator[tuple[str, str, str]]:
    """``(kind, name, value)`` of every entry point in a group of caramba's."""
    kind = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            top, _, kind = line.strip("[] ").partition(".")
            kind = "" if top != HOOKS_GROUP else kind or "hooks"
        elif kind and line and line[0] not in "#;":
            name, _, value = line.partition("=")
            yield kind, name.strip(), value.strip()


def _fault(entry: ComponentEntry, others: Sequence[ComponentEntry]) -> PluginError | None:
    """What is wrong with an entry point by its looks."""
    if not _NAME.fullmatch(entry.name) and entry.kind != "command_help":
        return PluginError(
            f"{entry.distribution} calls a component of the kind {entry.kind} {entry.name!r}, which is no name",
            hint="use letters, digits, '_', '.' and '-', without spaces",
        )
    if not _OBJECT.fullmatch(entry.value) or (":" not in entry.value and entry.kind not in ("hooks", "api")):
        return PluginError(
            f"{entry} points to {entry.value!r}, which is not an import path",
            hint="write package.module:Name in the plugin's pyproject.toml",
        )
    kinds = LAYER_KINDS if entry.kind in LAYER_KINDS else (entry.kind,)  # layers of all kinds may stand in one list
    alike = [other for other in others if other.kind in kinds and other.name == entry.name and other != entry]
    if alike:
        claims = f"{entry.kind} {entry.value} and {alike[0].kind} {alike[0].value}"
        return PluginError(f"{entry.qualified} is declared twice: {claims}", hint="give each a name of its own")
    if entry.is_alias and all((one.kind, one.value) != (entry.kind, entry.value) or one.is_alias for one in others):
        said = f"{entry} points to {entry.value}, which is no {entry.kind} of {entry.distribution}"
        return PluginError(said, hint=f"point to what another entry of {HOOKS_GROUP}.{entry.kind} points to")
    return None


def _fitness(plugin: Plugin) -> tuple[State, PluginError | None]:
    """Whether this plugin can work with this core, from the versions alone, and why not."""
    known, wanted, api = f"{plugin.name} {plugin.version}", plugin.core_range, plugin.api
    upgrade = f"pip install --upgrade {plugin.name}"
    try:
        fits = plugin.name == CORE or SpecifierSet(wanted or "").contains(core_version, prereleases=True)
    except InvalidSpecifier:
        said = f"{known} requires {CORE}{wanted}, which is no version range"
        return "incompatible", PluginError(said, hint=upgrade)
    if not fits:
        said = f"{known} requires {CORE} {wanted}, but {CORE} {core_version} is installed"
        return "incompatible", PluginError(said, hint=f"{upgrade}, or pip install '{CORE}{wanted}'")
    if api is not None and _major(api) != _major(API_VERSION):
        said = f"{known} was written for version {api} of the plugin API, but {CORE} {core_version} has {API_VERSION}"
        hint = f"{upgrade}, or a {CORE} whose plugin API has the version {_major(api)}"
        return "incompatible", PluginError(said, hint=hint)
    return "ok", None


def _major(version: str) -> str:
    return version.partition(".")[0]
