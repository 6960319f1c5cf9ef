"""``caramba plugins list``; plugins add further commands of the group."""

from __future__ import annotations

from typing import Annotated

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
