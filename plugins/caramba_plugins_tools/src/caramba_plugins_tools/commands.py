"""The commands of this distribution: ``explain``, ``schema``, ``plugins show``, ``plugins check``, ``plugins new``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["check", "explain", "new", "schema", "show"]


def explain(
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

    from caramba_core.plugins.registry import registry
    from caramba_plugins_tools.explain import explain, listed, render, render_list

    data = listed(registry()) if name is None else [attrs.asdict(one) for one in explain(registry(), name)]
    if json:
        typer.echo(dumps(data, indent=1))
    elif name is None:
        render_list(registry())
    else:
        render(explain(registry(), name))


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="the file to write; stdout if not given")
    ] = None,
) -> None:
    """Write the JSON Schema of manifests, for editors.

    It is JSON Schema 2020-12, with the components of the installed plugins.
    """
    from json import dumps

    from caramba_core.errors import InputError
    from caramba_core.plugins.registry import registry
    from caramba_plugins_tools.json_schema import manifest_schema

    text = dumps(manifest_schema(registry()), indent=1) + "\n"
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror or error}") from error
    typer.echo(
        f"wrote {output}; in an editor, put this line on top of a manifest:\n# yaml-language-server: $schema={output}",
        err=True,
    )


def show(
    name: Annotated[str, typer.Argument(help="a distribution, or the short name of a plugin")],
) -> None:
    """Show one plugin: what it says of itself, and its components with their fields."""
    from caramba_core.plugins.registry import registry
    from caramba_plugins_tools.installed import show_plugin

    show_plugin(registry(), name)


def check(
    name: Annotated[str | None, typer.Argument(help="a distribution; all of them if not given")] = None,
) -> None:
    """Import everything that plugins name, and say what is broken.

    What can be built without settings is built.
    """
    from caramba_core.plugins.registry import registry
    from caramba_plugins_tools.installed import check_plugins

    if check_plugins(registry(), name):
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
