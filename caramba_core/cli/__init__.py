"""The command ``caramba``: a table of subcommands that are imported only when they run, and one place for failures.

The table below is all that ``--help`` reads.  Plugins add subcommands through the entry-point group
``caramba.command``, whose names are listed from metadata.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
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
    "data": Command("caramba_core.cli.data:app", "Make token arrays from texts."),
    "export": Command("caramba_core.cli.export:command", "Write a run's model as a Hugging Face folder."),
    "graph": Command("caramba_core.cli.graph:command", "Draw a manifest's model."),
    "schema": Command("caramba_core.cli.schema:command", "Write the JSON Schema of manifests, for editors."),
    "explain": Command("caramba_core.cli.explain:command", "Document the fields of a component."),
    "plugins": Command("caramba_core.cli.plugins:app", "List, show, check and scaffold plugins."),
    "presets": Command("caramba_core.cli.presets:app", "List and show the manifests that plugins carry."),
}

_HELP = "Manifest-driven transformer research: describe an experiment, check it, plan it, run it."


class _Group(TyperGroup):
    """Commands by name; a stub stands for each until it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*COMMANDS, *_plugin_commands()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        known = COMMANDS.get(cmd_name)
        if known is None:
            target = _plugin_commands().get(cmd_name)
            if target is None:
                return None
            known = Command("", f"(supplied by {target.distribution})")
        return TyperCommand(cmd_name, help=known.help, rich_help_panel=None if known.target else "Commands of plugins")

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str, Any, list[str]]:
        name = args[0]
        if name in COMMANDS:
            return name, _load(name, COMMANDS[name]), args[1:]
        if name in (supplied := _plugin_commands()):
            return name, _click_command(name, _registry().load(supplied[name])), args[1:]
        from caramba_core.suggestions import nearest

        near = nearest(name, self.list_commands(ctx))
        ctx.fail(f"No such command {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        raise AssertionError("fail always raises")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _with_run(_without_plugins(args)))

    def invoke(self, ctx: Any) -> Any:
        from caramba_core.cli.failures import Stopped

        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Stopped(130) from None
        except BrokenPipeError:  # whoever read our output has seen enough
            raise Stopped(141) from None


def _registry() -> Any:
    from caramba_core.plugins.registry import registry

    return registry()


def _plugin_commands() -> dict[str, Any]:
    """The entries of commands that plugins supply, by the name that calls them: the short one where it is free."""
    entries = _registry().entries("command")
    names = [entry.name for entry in entries]
    return {
        entry.name if entry.name not in COMMANDS and names.count(entry.name) == 1 else entry.qualified: entry
        for entry in entries
    }


def _load(name: str, command: Command) -> Any:
    module, _, attribute = command.target.partition(":")
    return _click_command(name, getattr(import_module(module), attribute))


def _click_command(name: str, target: Any) -> Any:
    """The command behind a function, a typer app or a ready command."""
    if isinstance(target, typer.Typer):
        command = typer.main.get_command(target)
    elif callable(target) and not hasattr(target, "make_context"):
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command(name)(target)
        command = typer.main.get_command(app)
    else:
        command = target
    command.name = name
    return command


def _without_plugins(args: list[str]) -> list[str]:
    """Take every ``--no-plugin NAME`` out, wherever it stands, and switch those plugins off."""
    kept: list[str] = []
    names: list[str] = []
    rest = iter(args)
    for argument in rest:
        if argument == "--":
            kept += [argument, *rest]
        elif argument.startswith("--no-plugin="):
            names.append(argument.partition("=")[2])
        elif argument == "--no-plugin":
            name = next(rest, None)
            if name is None:
                kept.append(argument)  # the parser says that the option needs a value
            else:
                names.append(name)
        else:
            kept.append(argument)
    if names:
        from caramba_core.plugins.registry import switch_off

        switch_off(names)
    return kept


def _with_run(args: list[str]) -> list[str]:
    """``--manifest M`` is the original's spelling of ``run M``."""
    if args and args[0].startswith("--manifest="):
        return ["run", args[0].partition("=")[2], *args[1:]]
    if len(args) > 1 and args[0] == "--manifest":
        return ["run", *args[1:]]
    return args


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"caramba {__version__}")
        raise typer.Exit


_app = typer.Typer(cls=_Group, name="caramba", help=_HELP, no_args_is_help=True, pretty_exceptions_enable=False)


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
    from caramba_core.cli.failures import guarded, wants_json

    given = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(_app)
    standalone = not wants_json(given)  # then click reports faults of the command line, as text
    sys.exit(guarded(lambda: command(args=given, prog_name="caramba", standalone_mode=standalone), given))
