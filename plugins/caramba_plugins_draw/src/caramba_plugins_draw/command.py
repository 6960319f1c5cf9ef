"""``caramba graph``: a picture of a manifest's model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caramba_core.cli.completion import completed

__all__ = ["command"]


def command(
    manifest: Annotated[
        str, typer.Argument(help="a manifest file, or a preset's name", autocompletion=completed("manifest"))
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="the file to write: .svg, .mmd (Mermaid) or .html")],
    group: Annotated[
        str | None,
        typer.Option(help="the group whose model is drawn; the first if not given", autocompletion=completed("group")),
    ] = None,
    context: Annotated[int | None, typer.Option(min=1, help="tokens that operations are stated for")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="path=value, such as vars.sem_dim=24")] = None,
) -> None:
    """Draw a manifest's model.

    Repeated blocks are drawn once, with widths, parameters and cache.
    """
    from caramba_core.errors import InputError
    from caramba_core.manifest.load import load_manifest
    from caramba_core.places import expanded
    from caramba_core.plan import plan_manifest
    from caramba_plugins_draw import write

    loaded = load_manifest(manifest, overrides=set_ or [])
    names = [known.name for known in loaded.manifest.groups]
    if group is not None and group not in names:
        raise InputError(f"there is no group {group!r}", expected=", ".join(names) or "no --group: it has no groups")
    plan = plan_manifest(loaded, group=group or (names[0] if names else None), context=context)[0]
    write(plan, expanded(output))
    others = f" (--group draws {', '.join(name for name in names if name != plan.group)})" if len(names) > 1 else ""
    typer.echo(f"wrote {output}: the model of {plan.title}{others}", err=True)
