"""What the shell offers for manifests, presets, groups, runs, components and ``--set``; nothing here imports torch.

A completer is given the parameters that stand on the command line, and what the user has begun to write.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
from caramba_document.reading import Reading
from caramba_document.source import SUFFIXES, Broken, read_source
from caramba_document.texts import read_text
from caramba_document.tree import plain

from caramba_core.errors import PluginError
from caramba_core.manifest.load import load_manifest
from caramba_core.manifest.schema import Group
from caramba_core.manifest.values import kinds_of, members, settings_of
from caramba_core.places import expanded
from caramba_core.plugins.registry import registry

__all__ = ["components", "groups", "manifests", "presets", "runs", "settings"]

_MOST: Final = 24
"""Paths that are offered whole; of more the next part is."""


def presets(parameters: Mapping[str, Any], begun: str) -> Iterable[str]:
    """Names of presets."""
    return [entry.name for entry in registry().entries("preset")]


def components(parameters: Mapping[str, Any], begun: str) -> Iterable[str]:
    """Names of components, and with their kinds in front once a dot is there."""
    plugins = registry()
    entries = [entry for kind in plugins.kinds for entry in plugins.entries(kind) if "." not in entry.name]
    return sorted({f"{entry.kind}.{entry.name}" if "." in begun else entry.name for entry in entries})


def manifests(parameters: Mapping[str, Any], begun: str) -> Iterable[str]:
    """Presets, and manifests of the folder that the user has begun to name; bash completes folders by itself."""
    folder, slash, _ = begun.rpartition("/")
    place = expanded(folder or ("/" if slash else "."))
    found = [] if slash else [name for name in presets(parameters, begun) if name.startswith(begun)]
    folders = []
    for entry in sorted(os.scandir(place), key=lambda entry: entry.name) if place.is_dir() else ():
        name = f"{folder}{slash}{entry.name}"
        if name.startswith(begun) and (not entry.name.startswith(".") or begun.rpartition("/")[2].startswith(".")):
            if entry.is_dir():
                folders.append(f"{name}/")
            elif name.lower().endswith(SUFFIXES):
                found.append(name)
    alone = os.environ.get("_CARAMBA_COMPLETE", "").endswith("bash") and not found  # which would add a space
    return [] if alone else [*found, *folders]


def groups(parameters: Mapping[str, Any], begun: str) -> Iterable[str]:
    """Groups of the manifest on the command line."""
    loaded = load_manifest(str(parameters["manifest"])) if parameters.get("manifest") else None
    return [] if loaded is None else [group.name for group in loaded.manifest.groups]


def runs(parameters: Mapping[str, Any], begun: str) -> Iterable[str]:
    """Runs of the manifest's groups, or of those that ``--group`` names."""
    if not parameters.get("manifest"):
        return []
    chosen: Collection[str] = parameters.get("group") or ()
    found = load_manifest(str(parameters["manifest"])).manifest.groups
    return dict.fromkeys(run.id for group in found if not chosen or group.name in chosen for run in group.runs)


def settings(parameters: Mapping[str, Any], begun: str) -> Iterable[str]:
    """``PATH=VALUE`` of the manifest's variables, groups and runs, with the values that hold now, to be changed."""
    name = parameters.get("manifest")
    if not name:
        return []
    paths = (
        [] if begun.startswith("groups.") else [f"vars.{key}={_text(value)}" for key, value in _variables(str(name))]
    )
    if not begun.startswith("vars."):
        paths.extend(_of_groups(str(name)))
    return _by_level([path for path in paths if path.startswith(begun)], begun)


# ------------------------------------------------------------------------------------------------ paths of settings


def _variables(name: str) -> list[tuple[str, Any]]:
    """The variables of a manifest and of those that it extends, its own values first."""
    found: dict[str, Any] = {}
    places = [_place(name, Path())]
    for place in places:  # which grows by what is extended
        document = _document(place) if place is not None and len(places) < 32 else {}
        variables, extends = document.get("vars"), document.get("extends")
        if isinstance(variables, Mapping):
            found = {**variables, **found}
        named = [extends] if isinstance(extends, str) else extends if isinstance(extends, list) else []
        places.extend(_place(str(one), place.parent) for one in named if place is not None)
    return list(found.items())


def _place(name: str, folder: Path) -> Path | None:
    """The file of a manifest or preset that is named."""
    if name.lower().endswith(SUFFIXES) or "/" in name:
        return folder / expanded(name)
    try:
        place: Path = registry().load(registry().find(("preset",), name))
    except PluginError:
        return None
    return place


def _document(place: Path) -> Mapping[str, Any]:
    """A manifest's text as data, nothing of it resolved; empty where it cannot be read."""
    try:
        document = plain(read_text(read_source(place, str(place)), Reading()))
    except (Broken, OSError):
        return {}
    return document if isinstance(document, Mapping) else {}


def _of_groups(name: str) -> Iterator[str]:
    """Paths into the groups of a manifest."""
    for group in load_manifest(name).manifest.groups:
        fields = settings_of(Group)
        for key in ("teacher", "data", "eval"):
            yield from _paths(f"groups.{group.name}.{key}", getattr(group, key), fields[key][1])
        for run in group.runs:
            cls: Any = type(run)
            for key, (attribute, type_) in settings_of(cls).items():
                if key != "id":
                    path = f"groups.{group.name}.runs.{run.id}.{key}"
                    yield from _paths(path, getattr(run, attribute.name), type_)


def _paths(path: str, value: Any, type_: Any) -> Iterator[str]:
    """What can be set in a value at a path; where there is none yet, what its type would have."""
    inside = value if attrs.has(type(value)) else None
    cls: Any = None if inside is None else type(inside)
    if value is None:
        cls = next((one for one in members(type_) if attrs.has(one) and not kinds_of(one)), None)
    if cls is None:
        yield f"{path}={_text(value)}"
        return
    for key, (attribute, below) in settings_of(cls).items():
        given = getattr(inside, attribute.name) if inside is not None else _default(attribute)
        yield from _paths(f"{path}.{key}", given, below)


def _default(attribute: attrs.Attribute[Any]) -> Any:
    """A field's default, where that is a value of its own."""
    default = attribute.default
    return default if default is None or isinstance(default, bool | int | float | str) else ""


def _text(value: Any) -> str:
    """A value as ``--set`` takes it; empty where a shell would have to quote it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    return value if isinstance(value, str) and value.replace(".", "").replace("_", "").isalnum() else ""


def _by_level(paths: list[str], begun: str) -> list[str]:
    """The paths, or their beginnings up to the next dot where they are many."""
    if len(paths) <= _MOST:
        return paths
    cut = list(dict.fromkeys(path[: _next_part(path, len(begun))] for path in paths))
    if len(cut) > 1 or cut[0] == begun:
        return cut
    return _by_level(paths, cut[0])


def _next_part(path: str, begin: int) -> int:
    """Where the part that goes on at ``begin`` ends, its dot included; dots of values do not count."""
    dot = path.partition("=")[0].find(".", begin)
    return len(path) if dot < 0 else dot + 1
