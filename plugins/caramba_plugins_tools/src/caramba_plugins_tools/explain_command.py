"""``caramba explain``: what a component's fields are."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["command"]


def command(
    name: Annotated[
        str | None, typer.Argument(help="a component or section: dba, train, head.linear; none lists all")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="as data")] = False,
) -> None:
    """Document the fields of a component.

    Each has its type, default, range, unit and meaning.
    """
    from json import dumps

    import attrs
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from caramba_core.plugins.registry import registry
    from caramba_plugins_tools.explain import explain, render
    from caramba_plugins_tools.fields import sections

    plugins = registry()
    console = Console(soft_wrap=False)
    if not console.is_terminal:
        console = Console(width=120)
    if name is None:
        names = {"section": list(sections(plugins))} | {
            kind: [entry.name for entry in plugins.entries(kind)] for kind in plugins.kinds if plugins.entries(kind)
        }
        if json:
            typer.echo(dumps(names, indent=1))
            return
        table = Table.grid(padding=(0, 2))
        for kind, members in names.items():
            table.add_row(Text(kind, style="cyan"), ", ".join(dict.fromkeys(members)))
        console.print(table)
        return
    explanations = explain(plugins, name)
    if json:
        typer.echo(dumps([attrs.asdict(explanation) for explanation in explanations], indent=1))
        return
    for explanation in explanations:
        render(explanation, console)
