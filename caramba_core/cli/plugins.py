"""``caramba plugins``: list, show, check, new."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["app"]

app = typer.Typer(
    help="List, show, check and scaffold plugins.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    """List, show, check and scaffold plugins."""


@app.command("list")
def list_plugins(
    as_json: Annotated[bool, typer.Option("--json", help="as data")] = False,
) -> None:
    """List what is installed: versions, states and components; imports no plugin."""
    from caramba_core.plugins.listing import as_data, as_text
    from caramba_core.plugins.registry import registry

    if as_json:
        import json

        typer.echo(json.dumps(as_data(registry()), indent=2))
    else:
        typer.echo(as_text(registry(), style=typer.style))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="a distribution, or the short name of a plugin")],
) -> None:
    """Show one plugin: what it says of itself, and its components with their fields."""
    from caramba_plugins_tools.showing import shown

    from caramba_core.plugins.registry import registry

    typer.echo(shown(registry(), name, style=typer.style))


@app.command()
def check(
    name: Annotated[str | None, typer.Argument(help="a distribution; all of them if not given")] = None,
) -> None:
    """Import everything that plugins name, build what can be built without settings, and say what is broken."""
    from caramba_plugins_tools.checking import check_plugins

    from caramba_core.plugins.registry import registry

    broken = check_plugins(registry(), name, write=typer.echo, style=typer.style)
    if broken:
        raise typer.Exit(2)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="name of the component, such as my_attention")],
    kind: Annotated[
        Literal["attention", "layer", "topology", "strategy", "loader", "tracker"],
        typer.Option(help="what the component is"),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="folder to make; caramba-plugin-NAME")] = None,
) -> None:
    """Write a small complete distribution whose tests pass as they are."""
    from caramba_plugins_tools.scaffold import write_distribution

    folder = write_distribution(name, kind, output)
    typer.echo(f"wrote {folder}\n  next: pip install -e {folder} && pytest {folder}")
