"""Finding the text that a name stands for: a file, or a preset that a plugin carries."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path as FilePath
from typing import Final

from caramba_core.errors import PluginError
from caramba_core.manifest.source import SUFFIXES, Broken, SourceText, TextSpan, read_source
from caramba_core.plugins.registry import registry
from caramba_core.suggestions import nearest, suggestion

__all__ = ["find_source", "is_file_name"]

_KIND: Final = ("preset",)


def is_file_name(name: str) -> bool:
    """Whether a name means a file: it has a manifest's suffix, or a folder in it."""
    return name.lower().endswith(SUFFIXES) or "/" in name or "\\" in name


def find_source(name: str, folder: FilePath, asked: TextSpan | None = None) -> SourceText:
    """The text of a file (relative to ``folder``) or preset; raises :class:`Broken` where there is none.

    ``asked`` is where a manifest names it, for the report; without it the name came from the command line.
    """
    place = asked or TextSpan(SourceText(name=name, text="", placeless=True), 0, 0)
    if not is_file_name(name):
        return read_source(_preset(name, folder, place), name)
    if not name.lower().endswith(SUFFIXES):
        raise place.broken("this is not a manifest's file name", expected=", ".join(SUFFIXES))
    try:
        return read_source(folder / name, name)
    except Broken as broken:
        problem = broken.problem
        if asked is None or problem.line is not None:
            raise
        raise asked.broken(f"{name}: {problem.message}", expected=problem.expected, hint=problem.hint) from None


def _preset(name: str, folder: FilePath, asked: TextSpan) -> FilePath:
    """The file that a plugin carries under a preset's name."""
    try:
        entry = registry().find(_KIND, name)
    except PluginError as error:
        beside = [f"{name}{suffix}" for suffix in SUFFIXES if (folder / f"{name}{suffix}").is_file()]
        near = () if registry().supplier(_KIND, name) else nearest(name, [e.name for e in registry().entries("preset")])
        hint = error.hint
        if beside:
            hint = f"for the file beside it, write {beside[0]}"
        elif near and hint is not None and hint.startswith("did you mean"):
            hint = None
        expected = None if near else error.expected
        raise asked.broken(f"there is no preset {name!r}{suggestion(near)}", expected=expected, hint=hint) from None
    package, _, stem = entry.value.partition(":")
    try:
        spec = find_spec(package)
    except Exception as error:  # noqa: BLE001 - a plugin's package may raise anything while it is imported
        raise asked.broken(f"the preset {entry.qualified} cannot be read: {error}") from None
    for place in (spec and spec.submodule_search_locations) or ():
        file = FilePath(place, f"{stem}.yml")
        if file.is_file():
            return file
    raise asked.broken(
        f"{entry.distribution} {entry.version} lists the preset {entry.name} but does not carry {stem}.yml",
        hint=f"pip install --force-reinstall {entry.distribution}",
    )
