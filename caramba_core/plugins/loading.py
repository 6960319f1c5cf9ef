"""Importing what an entry point names, so that one broken plugin stops only what needs it."""

from __future__ import annotations

import contextlib
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from caramba_core.errors import PluginError
from caramba_core.kinds import Kind
from caramba_core.plugins.metadata import CORE, Entry, Plugin, normalized

__all__ = ["import_entry", "required_methods"]


def import_entry(entry: Entry, plugin: Plugin, kind: Kind | None) -> Any:
    """The object that an entry names, of a ``kind`` if it is no hook module.

    Raises :class:`PluginError` with the cause and what to do.  What a plugin prints on import goes to stderr, so that
    machine-readable output stays clean.
    """
    module_name, _, attributes = entry.value.partition(":")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found: Any = import_module(module_name)
    except (Exception, SystemExit) as error:
        raise _import_failure(entry, plugin, error) from error
    for attribute in attributes.split(".") if attributes else ():
        if not hasattr(found, attribute):
            raise PluginError(
                f"{entry} {entry.version} is broken: {module_name} has no {attribute!r}",
                expected=f"{entry.value} to exist, as the metadata of {entry.distribution} says",
                hint=f"pip install --force-reinstall {entry.distribution} (its metadata may be of another version)",
            )
        found = getattr(found, attribute)
    if kind is not None:
        _check_kind(entry, found, kind)
    return found


def _import_failure(entry: Entry, plugin: Plugin, error: BaseException) -> PluginError:
    module_name = entry.value.partition(":")[0]
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    hint = (
        f"pip install --upgrade {entry.distribution}, or report it to its author; "
        f"--no-plugin {entry.distribution} leaves it out of runs that do not need it"
    )
    if isinstance(error, ModuleNotFoundError) and error.name:
        missing = error.name
        if missing == module_name or module_name.startswith(f"{missing}."):
            said = f"its module {missing} is not there"
            hint = f"pip install --force-reinstall {entry.distribution}, or pip uninstall {entry.distribution}"
        elif missing.partition(".")[0] != module_name.partition(".")[0]:
            said = f"it needs the module {missing!r}, which is not installed"
            hint = _how_to_install(missing.partition(".")[0], plugin)
    if entry.distribution == CORE:
        hint = f"pip install --force-reinstall {CORE}"
    return PluginError(f"{entry} {entry.version} is broken: {said} (importing {module_name}{_place(error)})", hint=hint)


def _place(error: BaseException) -> str:
    """Where it happened; a missing module or bad syntax says so itself."""
    import traceback  # only failures need it

    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, (ImportError, SyntaxError)) or not frames:
        return ""
    return f", {frames[-1].filename}:{frames[-1].lineno}"


def _how_to_install(module: str, plugin: Plugin) -> str:
    """The pip command that brings a missing module: through the plugin's own requirements where they name it."""
    for requirement in plugin.requirements:
        name = requirement.partition(";")[0].strip()
        bare = name.split("[")[0].split("<")[0].split(">")[0].split("=")[0].split("!")[0].split("~")[0].split("(")[0]
        if normalized(bare) == normalized(module):
            extra = requirement.partition("extra ==")[2].strip(" '\"()")
            return f"pip install '{plugin.name}[{extra}]'" if extra else f"pip install '{name}'"
    return f"pip install {module}, or pip install --force-reinstall {plugin.name} with its dependencies"


def required_methods(base: type) -> tuple[str, ...]:
    """The methods that a protocol names; empty for a base class."""
    if not getattr(base, "_is_protocol", False):
        return ()
    return tuple(name for name in vars(base) if not name.startswith("_") and callable(getattr(base, name)))


def _check_kind(entry: Entry, found: Any, kind: Kind) -> None:
    """Raise where the object is not what entries of its kind must be."""
    said = f"is {_described(found)}"
    if kind.name == "preset" and not (isinstance(found, Path) and found.is_file()):
        raise _misfit(entry, "is not the path of a file", "a pathlib.Path of a manifest that the distribution carries")
    if kind.name == "command" and not callable(found):
        raise _misfit(entry, said, "a function with typer's annotations, or a typer.Typer")
    if kind.contract is None:
        return
    module, _, name = kind.contract.partition(":")
    try:
        base = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"{entry} cannot be used: its kind {kind.name} is broken: {error}") from error
    methods = required_methods(base)
    if methods:
        missing = [method for method in methods if not callable(getattr(found, method, None))]
        if missing or not isinstance(found, type):
            lacks = f"has no method {missing[0]}" if isinstance(found, type) else said
            raise _misfit(entry, lacks, f"a class like {module}.{name}, with {' and '.join(methods)}")
    elif not (isinstance(found, type) and issubclass(found, base)):
        raise _misfit(entry, said, f"a class derived from {module}.{name}")
    elif "__attrs_attrs__" not in vars(found):
        raise PluginError(
            f"{entry} {entry.version} is broken: the class {entry.value} is not a component",
            expected="the decorator @component above the class",
            hint=_hint(entry),
        )


def _misfit(entry: Entry, said: str, expected: str) -> PluginError:
    return PluginError(f"{entry} {entry.version} is broken: {entry.value} {said}", expected=expected, hint=_hint(entry))


def _hint(entry: Entry) -> str:
    return f"this is a fault of {entry.distribution} {entry.version}: update it, or report it to its author"


def _described(found: Any) -> str:
    return (
        f"the class {found.__name__}"
        if isinstance(found, type)
        else f"{_with_article(type(found).__name__)}, not a class"
    )


def _with_article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiouAEIOU" else f"a {word}"
