"""``caramba plugins show``, ``check`` and ``new``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["check", "new", "show"]


def show(
    name: Annotated[str, typer.Argument(help="a distribution, or the short name of a plugin")],
) -> None:
    """Show one plugin: what it says of itself, and its components with their fields."""
    from caramba_core.plugins.registry import registry
    from caramba_plugins_tools.showing import shown

    typer.echo(shown(registry(), name, style=typer.style))


def check(
    name: Annotated[str | None, typer.Argument(help="a distribution; all of them if not given")] = None,
) -> None:
    """Import everything that plugins name, and say what is broken.

    What can be built without settings is built.
    """
    from caramba_core.plugins.registry import registry
    from caramba_plugins_tools.checking import check_plugins

    broken = check_plugins(registry(), name, write=typer.echo, style=typer.style)
    if broken:
        raise typer.Exit(2)


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
