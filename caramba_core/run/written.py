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

__all__ = ["written_manifest"]


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
        if one.teacher is not None:
            source = pinned if one is group and pinned is not None else one.teacher.source
            named = source if "://" in source else _from(folder, loaded.folder, one.teacher.source)
            written["teacher"] = {**written["teacher"], "source": named}
        for which in written.get("data") or {}:
            dataset = getattr(one.data, which)
            files = () if dataset is None else dataset.files()
            names = {str(file): _from(folder, loaded.folder, file) for file in files}
            written["data"] = {**written["data"], which: _renamed(written["data"][which], names)}
    return dump(document)


def _from(folder: Path, origin: Path, name: str | Path) -> str:
    """A file's name, relative to ``origin``, as one relative to ``folder``; absolute names stay what they are."""
    path = expanded(name)
    return str(path) if path.is_absolute() else os.path.relpath(origin / path, folder)


def _renamed(dataset: Any, names: dict[str, str]) -> Any:
    """A dataset's entry with its files' names replaced."""
    if isinstance(dataset, str):
        return names.get(str(Path(dataset)), dataset)
    if isinstance(dataset, Mapping):
        return {key: value if key == "type" else _renamed(value, names) for key, value in dataset.items()}
    if isinstance(dataset, list):
        return [_renamed(value, names) for value in dataset]
    return dataset
