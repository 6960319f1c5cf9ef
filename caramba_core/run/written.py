"""The manifest that a run's folder keeps: as it was run, everything resolved, so that it can be read and run again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caramba_document.writing import dump

from caramba_core.manifest.load import Loaded
from caramba_core.manifest.schema import Group
from caramba_core.places import expanded

__all__ = ["lead_from", "written_manifest"]


def written_manifest(loaded: Loaded, group: Group, folder: Path, *, pinned: str | None) -> str:
    """The resolved manifest with this group, and those that its runs continue from.

    Names of files lead from ``folder`` to what they led to from the manifest's own.  ``pinned`` is the source of the
    group's teacher as exactly the content that was read: a hub's address with its commit.
    """
    chain = {one.name: one for one in loaded.manifest.chain(group)}
    document = loaded.document if len(chain) > 1 else loaded.resolved_group(group.name)
    document["groups"] = [written for written in document["groups"] if written["name"] in chain]
    for written in document["groups"]:
        one = chain[written["name"]]
        lead_from(written, one, loaded.folder, folder, pinned if one is group else None)
    return dump(document)


def lead_from(written: dict[str, Any], group: Group, origin: Path, folder: Path | None, pinned: str | None) -> None:
    """Make the names of files in a written group lead from ``folder``, or from anywhere; they led from ``origin``."""
    if group.teacher is not None:
        source = pinned or group.teacher.source
        written["teacher"]["source"] = source if "://" in source else _from(folder, origin, group.teacher.source)
    for which in written.get("data") or {}:
        dataset = getattr(group.data, which)
        names = {str(file): _from(folder, origin, file) for file in (() if dataset is None else dataset.files())}
        written["data"] = {**written["data"], which: _renamed(written["data"][which], names)}


def _from(folder: Path | None, origin: Path, name: str | Path) -> str:
    """A file's name, relative to ``origin``, as one relative to ``folder``; absolute names stay what they are."""
    path = expanded(name)
    anywhere = folder is None or path.is_absolute()
    return str(origin.resolve() / path) if anywhere else os.path.relpath(origin / path, folder)


def _renamed(dataset: Any, names: dict[str, str]) -> Any:
    """A dataset's entry with its files' names replaced."""
    if isinstance(dataset, str):
        return names.get(str(Path(dataset)), dataset)
    if isinstance(dataset, Mapping):
        return {key: value if key == "type" else _renamed(value, names) for key, value in dataset.items()}
    if isinstance(dataset, list):
        return [_renamed(value, names) for value in dataset]
    return dataset
