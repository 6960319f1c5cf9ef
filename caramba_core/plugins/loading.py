"""Importing what an entry point names, so that one broken plugin stops only what needs it."""

from __future__ import annotations

from importlib import import_module
from inspect import Parameter, isasyncgenfunction, iscoroutinefunction, isgeneratorfunction, signature
from pathlib import Path
from typing import Any, Final

from caramba_document.suggestions import article, nearest, suggestion

from caramba_core.errors import PluginError
from caramba_core.kinds import Kind
from caramba_core.plugins.guard import import_guarded, what_was_raised
from caramba_core.plugins.metadata import CORE, ComponentEntry, Plugin, applies, extra_of, normalized, required

__all__ = ["broken", "check_hooks", "import_entry", "required_methods"]

_NO_FUNCTIONS: Final = (
    (iscoroutinefunction, "a coroutine (async def)"),
    (isasyncgenfunction, "an asynchronous generator (async def with yield)"),
    (isgeneratorfunction, "a generator (def with yield)"),
)


def broken(entry: ComponentEntry, what: str, *, expected: str | None = None, hint: str | None = None) -> PluginError:
    """The error for an entry whose object cannot be used; without a ``hint`` its author has to repair it."""
    author = f"this is a fault of {entry.distribution} {entry.version}: update it, or report it to its author"
    return PluginError(f"{entry} {entry.version} is broken: {what}", expected=expected, hint=hint or author)


def import_entry(entry: ComponentEntry, plugin: Plugin, kind: Kind | None) -> Any:
    """The object that an entry names, of a ``kind`` if it is a component.

    Raises :class:`PluginError` with the cause and what to do.  What a plugin prints on import goes to stderr, so that
    machine-readable output stays clean.
    """
    module_name, _, attributes = entry.value.partition(":")
    try:
        found: Any = import_guarded(module_name, f"{entry.distribution} {entry.version}")
    except Exception as error:  # noqa: BLE001 - whatever a plugin raises
        cause = what_was_raised(error)
        raise _import_failure(entry, plugin, module_name, cause) from cause
    for attribute in attributes.split(".") if attributes else ():
        if not hasattr(found, attribute):
            raise broken(
                entry,
                f"{module_name} has no {attribute!r}",
                expected=f"{entry.value} to exist, as the metadata of {entry.distribution} says",
                hint=f"pip install --force-reinstall {entry.distribution} (its metadata may be of another version)",
            )
        found = getattr(found, attribute)
    if entry.kind == "hooks":
        check_hooks(entry, found)
    elif kind is not None:
        _check_kind(entry, found, kind)
    return found


def _import_failure(entry: ComponentEntry, plugin: Plugin, module_name: str, error: BaseException) -> PluginError:
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    hint = (
        f"pip install --upgrade {entry.distribution}, or report it to its author; "
        f"--no-plugin {entry.distribution} leaves it out of runs that do not need it"
    )
    missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
    if missing and f"{module_name}.".startswith(f"{missing}."):
        said = f"its module {missing} is not there"
        hint = f"pip install --force-reinstall {entry.distribution}, or pip uninstall {entry.distribution}"
    elif missing and missing.partition(".")[0] != module_name.partition(".")[0]:
        said = f"it needs the module {missing!r}, which is not installed"
        hint = _how_to_install(missing.partition(".")[0], plugin)
    if entry.distribution == CORE:
        hint = f"pip install --force-reinstall {CORE}"
    return broken(entry, f"{said} (importing {module_name}{_place(error)})", hint=hint)


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
        extra = extra_of(requirement)
        if required(requirement)[0] == normalized(module) and applies(requirement, extra or ""):
            return f"pip install '{f'{plugin.name}[{extra}]' if extra else requirement.partition(';')[0].strip()}'"
    return f"pip install {module}, or pip install --force-reinstall {plugin.name} with its dependencies"


def required_methods(base: type) -> tuple[str, ...]:
    """The methods that a protocol names; empty for a base class."""
    if not getattr(base, "_is_protocol", False):
        return ()
    return tuple(name for name in vars(base) if not name.startswith("_") and callable(getattr(base, name)))


def _check_kind(entry: ComponentEntry, found: Any, kind: Kind) -> None:
    """Raise where the object is not what entries of its kind must be."""
    described = (
        f"the class {found.__name__}" if isinstance(found, type) else f"{article(type(found).__name__)}, not a class"
    )
    if kind.name == "preset" and not (isinstance(found, Path) and found.is_file()):
        expected = "a pathlib.Path of a manifest that the distribution carries"
        raise broken(entry, f"{entry.value} is not the path of a file", expected=expected)
    if kind.name == "command" and not callable(found):
        expected = "a function with typer's annotations, or a typer.Typer"
        raise broken(entry, f"{entry.value} is {described}", expected=expected)
    if kind.contract is None:
        return
    module, _, name = kind.contract.partition(":")
    try:
        base = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"{entry} cannot be used: its kind {kind.name} is broken: {error}") from error
    if methods := required_methods(base):
        missing = [method for method in methods if not callable(getattr(found, method, None))]
        if missing or not isinstance(found, type):
            said = f"has no method {missing[0]}" if isinstance(found, type) else f"is {described}"
            expected = f"a class like {module}.{name}, with {' and '.join(methods)}"
            raise broken(entry, f"{entry.value} {said}", expected=expected)
    elif not (isinstance(found, type) and issubclass(found, base)):
        raise broken(entry, f"{entry.value} is {described}", expected=f"a class derived from {module}.{name}")
    elif "__attrs_attrs__" not in vars(found):
        expected = "the decorator @component above the class"
        raise broken(entry, f"the class {entry.value} is not a component", expected=expected)


def check_hooks(entry: ComponentEntry, module: Any) -> None:
    """Raise :class:`PluginError` where a module implements a hook that is none, or asks for what it is not given."""
    from caramba_core import hookspecs  # listings do without pluggy

    known = [name for name, spec in vars(hookspecs).items() if hasattr(spec, "caramba_spec")]
    for name, hook, options in hookspecs.implementations(module):
        if hook not in known:
            raise broken(
                entry,
                f"it implements {hook!r}, which is no hook{suggestion(nearest(hook, known))}",
                expected=f"one of {', '.join(known)}",
                hint="docs/plugins.md lists the hooks",
            )
        if options["wrapper"] or options["hookwrapper"]:
            expected = "a plain function: hooks of caramba cannot be wrapped"
            raise broken(
                entry, f"{hook!r} is a hook wrapper", expected=expected, hint="use tryfirst=True or trylast=True"
            )
        for is_one, what in _NO_FUNCTIONS:
            if is_one(getattr(module, name)):
                raise broken(entry, f"its hook {hook!r} is {what}, which nothing runs", expected="a plain function")
        given = signature(getattr(hookspecs, hook)).parameters
        for asked, parameter in signature(getattr(module, name)).parameters.items():
            if asked not in given and parameter.default is Parameter.empty:
                raise broken(
                    entry,
                    f"its hook {hook!r} takes the argument {asked!r}{suggestion(nearest(asked, given))}",
                    expected=f"any of {', '.join(given)}" if given else "no arguments",
                    hint=f"docs/plugins.md lists what {hook} is given",
                )
