"""The command ``caramba``: a table of subcommands that are imported only when they run, and one place for failures.

``--help`` reads the table below, and of plugins their metadata: commands from the entry-point group ``caramba.command``
(where ``box.open`` is the subcommand ``open`` of ``box``), lines of help from ``caramba.command_help``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache, partial
from importlib import import_module
from typing import Annotated, Any, Final, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from caramba_core import __version__

__all__ = ["COMMANDS", "Command", "main"]


class Command(NamedTuple):
    """A subcommand: the import path of its function or typer app, and its line in ``--help``."""

    target: str
    help: str


COMMANDS: Final[dict[str, Command]] = {
    "run": Command("caramba_core.cli.run:command", "Run a manifest: convert, train, evaluate, generate."),
    "compile": Command("caramba_core.cli.compile:command", "Check a manifest and plan it, without torch."),
    "plugins.list": Command("caramba_core.cli.plugins:command", "List what is installed; imports no plugin."),
}

_PANEL = "Commands of plugins"
_HELP = "Manifest-driven transformer research: describe an experiment, check it, plan it, run it."


class _Stub(TyperCommand):
    """A command that is imported when it is called: until then it is a name and a line in ``--help``."""

    def __init__(self, name: str, help: str, load: Callable[[], Any], *, panel: str | None = None) -> None:
        super().__init__(name, help=help, rich_help_panel=panel)
        self._load = load

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self._load().make_context(info_name, args, parent, **extra)


class _Root(TyperGroup):
    """The commands of the core, and those of plugins once they matter: for the list, and for a name of nobody else."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        _mount_own(self, "")
        self._mount_once = cache(partial(_mount, self, ""))

    def list_commands(self, ctx: Any) -> list[str]:
        self._mount_once()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            self._mount_once()
        return super().get_command(ctx, cmd_name)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _with_run(_without_plugins(args)))

    def invoke(self, ctx: Any) -> None:
        from caramba_core.cli.failures import Stopped

        try:
            super().invoke(ctx)  # what a command returns is no exit code
        except BrokenPipeError:  # whoever read our output has seen enough
            raise Stopped(141) from None


def _imported(name: str) -> Any:
    module, _, attribute = COMMANDS[name].target.partition(":")
    return _click_command(name, getattr(import_module(module), attribute))


def _loaded(entry: Any) -> Any:
    return _click_command(entry.name, _registry().load(entry))


def _registry() -> Any:
    from caramba_core.plugins.registry import registry

    return registry()


def _mount_own(group: TyperGroup, path: str) -> None:
    """Add the core's commands whose names begin with ``path``: ``plugins.list`` is ``list`` of ``plugins``."""
    for name, command in COMMANDS.items():
        if name.startswith(path) and "." not in name.removeprefix(path):
            group.add_command(_Stub(name.removeprefix(path), command.help, partial(_imported, name)))


def _mount(group: TyperGroup, path: str) -> None:
    """Add the commands of plugins whose names begin with ``path``.

    A command is called by the last part of its name where that is free, else by ``DISTRIBUTION:PART``.  A group that
    nobody supplies, but commands name, is made.
    """
    entries = _registry().entries("command")
    found = {entry: entry.name.removeprefix(path) for entry in entries if entry.name.startswith(path)}
    own, names = set(group.commands), list(found.values())
    core = [name.removeprefix(path) for name in COMMANDS if name.startswith(path)]
    for entry, name in found.items():
        if "." not in name:
            line = _registry().command_help(entry)
            told = f"{line} ({entry.distribution})" if line else f"(supplied by {entry.distribution})"
            called = name if name not in own and names.count(name) == 1 else f"{entry.distribution}:{name}"
            group.add_command(_Stub(called, told, partial(_loaded, entry), panel=_PANEL))
    for name in sorted({name.partition(".")[0] for name in (*core, *names)} - group.commands.keys()):
        shared = any(each.startswith(f"{name}.") for each in core)
        made = TyperGroup(name=name, no_args_is_help=True, rich_help_panel=None if shared else _PANEL)
        _mount_own(made, f"{path}{name}.")
        _mount(made, f"{path}{name}.")
        made.help = f"Commands: {', '.join(made.commands)}."
        group.add_command(made)


def _click_command(name: str, target: Any) -> Any:
    """The command behind a function, a typer app or a ready command; an app also has what plugins add to it."""
    if isinstance(target, typer.Typer):
        command: Any = typer.main.get_group(target)
        own = len(command.commands)
        _mount(command, f"{name}.")
        if len(command.commands) == own:
            command = typer.main.get_command(target)  # which makes no group of a single command
    elif callable(target) and not hasattr(target, "make_context"):
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command(name)(target)
        command = typer.main.get_command(app)
    else:
        command = target
    command.name = name.rpartition(".")[2]
    return command


def _without_plugins(args: list[str]) -> list[str]:
    """Take every ``--no-plugin NAME`` out, wherever it stands, and switch those plugins off."""
    kept: list[str] = []
    names: list[str] = []
    rest = iter(args)
    for argument in rest:
        option, equals, name = argument.partition("=")
        if argument == "--":
            kept += [argument, *rest]
        elif option != "--no-plugin":
            kept.append(argument)
        elif equals or (name := next(rest, "")):
            names.append(name)
        else:
            kept.append(argument)  # the parser says that the option needs a value
    if names:
        from caramba_core.plugins.registry import switch_off

        switch_off(names)
    return kept


def _with_run(args: list[str]) -> list[str]:
    """``--manifest M`` is the original's spelling of ``run M``."""
    option, equals, manifest = args[0].partition("=") if args else ("", "", "")
    if option != "--manifest" or (not equals and len(args) == 1):
        return args
    return ["run", manifest, *args[1:]] if equals else ["run", *args[1:]]


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"caramba {__version__}")
        raise typer.Exit


_app = typer.Typer(cls=_Root, name="caramba", help=_HELP, no_args_is_help=True, pretty_exceptions_enable=False)


@_app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    no_plugin: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Switch a plugin off; may stand anywhere, several times.")
    ] = None,
    manifest: Annotated[str | None, typer.Option(metavar="MANIFEST", help="The same as: run MANIFEST.")] = None,
) -> None:
    """Options that hold for every command; the group takes them out before it parses the rest."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``caramba`` with these arguments (the process's own by default) and exit."""
    from caramba_terminal.output import data_alone

    from caramba_core.cli.failures import guarded, wants_json

    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:  # it is closed: no file that is opened from here on may take its number
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(_app)
    as_data = wants_json(given)  # then faults of the command line are no texts of click's
    with data_alone(to_the_end=arguments is None) if as_data else nullcontext():
        code = guarded(lambda: command(args=given, prog_name="caramba", standalone_mode=not as_data), given)
    sys.exit(code)
