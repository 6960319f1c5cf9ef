"""``caramba presets``: the manifests that plugins carry."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["list_presets", "show"]


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


def show(
    name: Annotated[str, typer.Argument(help="a preset's short or qualified name")],
    path: Annotated[bool, typer.Option("--path", help="print where the file is instead of what it says")] = False,
) -> None:
    """Print a preset's manifest, to read or to start one's own from."""
    from caramba_core.plugins.registry import registry

    file = registry().load(registry().find(("preset",), name))
    typer.echo(str(file) if path else file.read_text(encoding="utf-8"), nl=path)
