"""``caramba init``; what it needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caramba_core.cli.completion import completed

__all__ = ["command"]


def command(
    source: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="FILE|FOLDER|hf://...", help="the checkpoint; the one in this folder if not given"
        ),
    ] = None,
    attention: Annotated[
        str, typer.Option(help="what its attentions become", autocompletion=completed("attention"))
    ] = "dba",
    cache: Annotated[str, typer.Option(help="share of its cache that is left, such as 0.5x")] = "0.5x",
    text: Annotated[Path | None, typer.Option(metavar="FILE", help="text or token array to learn from")] = None,
    heldout: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the same to measure on; the last tenth of --text if not given")
    ] = None,
    with_: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="FIELD=VALUE", help="a field of the attention, such as layout=free"),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="the manifest to write")] = Path("manifest.yml"),
    force: Annotated[bool, typer.Option("--force", help="replace a manifest that is there")] = False,
) -> None:
    """Write a manifest that converts a checkpoint at hand.

    Sizes fit the checkpoint, the text and this machine; comments say what each setting means.
    """
    from caramba_core.places import expanded
    from caramba_plugins_upcycle.init.writing import write_manifest

    lines = write_manifest(
        source,
        attention=attention,
        cache=cache,
        text=None if text is None else expanded(text),
        heldout=None if heldout is None else expanded(heldout),
        fields=with_ or [],
        output=expanded(output),
        force=force,
    )
    for line in lines:
        typer.echo(line)
