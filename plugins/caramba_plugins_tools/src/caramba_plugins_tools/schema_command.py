"""``caramba schema``: JSON Schema of manifests, for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
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
