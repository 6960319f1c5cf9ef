"""The commands of this distribution: ``doctor``, ``explain``, ``schema``, and those of ``plugins`` and ``presets``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from caramba_core.cli.completion import completed

__all__ = ["check", "doctor", "explain", "list_presets", "new", "schema", "show", "show_preset"]


def explain(
    name: Annotated[
        str | None,
        typer.Argument(
            help="a component or section: dba, train, head.linear; none lists all",
            autocompletion=completed("component"),
        ),
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
    from caramba_core.places import expanded
    from caramba_core.plugins.registry import registry
    from caramba_plugins_tools.json_schema import manifest_schema

    text = dumps(manifest_schema(registry()), indent=1) + "\n"
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        expanded(output).write_text(text, encoding="utf-8")
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
    from caramba_core.places import expanded
    from caramba_plugins_tools.scaffold import write_distribution

    folder = write_distribution(name, kind, None if output is None else expanded(output))
    typer.echo(f"wrote {folder}\n  next: pip install -e {folder} && pytest {folder}")


def doctor(
    measure: Annotated[bool, typer.Option("--measure/--no-measure", help="measure what devices do, in seconds")] = True,
    json: Annotated[bool, typer.Option("--json", help="as data")] = False,
) -> None:
    """Say what is installed, what is missing, which devices there are, and how fast they are.

    Plugins are imported; one that cannot be ends with exit code 2.
    """
    from json import dumps

    from caramba_core.plugins.registry import registry
    from caramba_plugins_tools.doctor import as_data, examine, lines

    found = examine(registry(), measure=measure)
    if json:
        typer.echo(dumps(as_data(found), indent=1))
    else:
        for line in lines(found):
            typer.echo(line)
    if found.problems:
        raise typer.Exit(2)


def list_presets(
    as_json: Annotated[bool, typer.Option("--json", help="as data")] = False,
) -> None:
    """List the presets and who carries them; run one with `caramba run NAME`."""
    from caramba_core.plugins.registry import registry

    entries = registry().entries("preset")
    if as_json:
        import json

        rows = [{"name": entry.name, "distribution": entry.distribution, "version": entry.version} for entry in entries]
        typer.echo(json.dumps({"presets": rows}, indent=2))
        return
    if not entries:
        typer.echo("no installed plugin carries a preset")
    widest = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        typer.echo(f"{entry.name:<{widest}}  {entry.distribution} {entry.version}")


def show_preset(
    name: Annotated[str, typer.Argument(help="a preset's short or qualified name", autocompletion=completed("preset"))],
    path: Annotated[bool, typer.Option("--path", help="print where the file is instead of what it says")] = False,
) -> None:
    """Print a preset's manifest, to read or to start one's own from."""
    from caramba_core.plugins.registry import registry

    file = registry().load(registry().find(("preset",), name))
    typer.echo(str(file) if path else file.read_text(encoding="utf-8"), nl=path)
