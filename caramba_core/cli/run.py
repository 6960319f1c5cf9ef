"""``caramba run``: everything that a manifest asks for, with progress."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    manifest: Annotated[str, typer.Argument(help="a manifest file, or the name of a preset")],
    group: Annotated[str | None, typer.Option(help="only this group")] = None,
    run: Annotated[str | None, typer.Option(help="only this run of each group")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="path=value, such as vars.sem_dim=24")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with runs that stopped midway")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything, compute nothing")] = False,
    output: Annotated[Path, typer.Option(help="folder that takes the runs")] = Path("runs"),
    minutes: Annotated[
        float | None, typer.Option(help="stop at a step boundary after this time, with a checkpoint")
    ] = None,
) -> None:
    """Run a manifest: convert, train and measure, group by group."""
    from caramba_core.manifest.load import load_manifest
    from caramba_core.run.experiment import Experiment

    loaded = load_manifest(manifest, overrides=set_ or [], fetch=True)
    experiment = Experiment(loaded, group=group, run=run, output=output)
    experiment.complete(resume=resume, minutes=minutes, dry_run=dry_run)
    if not dry_run:
        experiment.report()
        experiment.verify()
