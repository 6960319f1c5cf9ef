"""Finding the text that a name stands for: a file, or a preset that a plugin carries."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path as FilePath
from typing import Final

from caramba_core.errors import PluginError
from caramba_core.manifest.problem import ManifestProblem
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
    if is_file_name(name):
        if not name.lower().endswith(SUFFIXES):
            raise Broken(_problem(asked, name, "this is not a manifest's file name", expected=", ".join(SUFFIXES)))
        try:
            return read_source(folder / name, name)
        except Broken as broken:
            if asked is None or broken.problem.line is not None:
                raise
            problem = broken.problem
            raise Broken(
                asked.problem(f"{name}: {problem.message}", expected=problem.expected, hint=problem.hint)
            ) from None
    return read_source(_preset(name, folder, asked), name)


def _preset(name: str, folder: FilePath, asked: TextSpan | None) -> FilePath:
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
        message = f"there is no preset {name!r}{suggestion(near)}"
        raise Broken(_problem(asked, name, message, expected=None if near else error.expected, hint=hint)) from None
    package, _, stem = entry.value.partition(":")
    try:
        spec = find_spec(package)
    except Exception as error:  # noqa: BLE001 - a plugin's package may raise anything while it is imported
        raise Broken(_problem(asked, name, f"the preset {entry.qualified} cannot be read: {error}")) from None
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    for place in places:
        file = FilePath(place, f"{stem}.yml")
        if file.is_file():
            return file
    raise Broken(
        _problem(
            asked,
            name,
            f"{entry.distribution} {entry.version} lists the preset {entry.name} but does not carry {stem}.yml",
            hint=f"pip install --force-reinstall {entry.distribution}",
        )
    )


def _problem(asked: TextSpan | None, name: str, message: str, **more: str | None) -> ManifestProblem:
    return ManifestProblem(file=name, message=message, **more) if asked is None else asked.problem(message, **more)  # type: ignore[arg-type]
