"""``caramba plugins list``; plugins add further commands of the group."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["command"]


def command(as_json: Annotated[bool, typer.Option("--json", help="as data")] = False) -> None:
    """List what is installed: versions, states and components; imports no plugin."""
    from caramba_core.plugins.listing import as_data, as_text
    from caramba_core.plugins.registry import registry

    if as_json:
        import json

        typer.echo(json.dumps(as_data(registry()), indent=2))
    else:
        typer.echo(as_text(registry(), style=typer.style))
