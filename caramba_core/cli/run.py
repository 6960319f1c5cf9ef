"""``caramba run``: everything that a manifest asks for, with progress."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from caramba_core.cli.completion import completed

__all__ = ["command"]


def command(
    manifest: Annotated[
        str, typer.Argument(help="a manifest file, or a preset's name", autocompletion=completed("manifest"))
    ],
    group: Annotated[
        list[str] | None,
        typer.Option(help="only this group; may come several times", autocompletion=completed("group")),
    ] = None,
    run: Annotated[
        list[str] | None, typer.Option(help="only this run of each group; the same", autocompletion=completed("run"))
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="path=value: vars.sem_dim=24", autocompletion=completed("setting"))
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with runs that stopped midway")] = False,
    resume_from: Annotated[
        int | None, typer.Option(min=0, metavar="STEP", help="with --resume: from the checkpoint of this step")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="do the runs anew; the folders they had stay hidden")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything, compute nothing")] = False,
    output: Annotated[Path, typer.Option(help="folder that takes the runs")] = Path("runs"),
    minutes: Annotated[
        float | None, typer.Option(help="end after this time, between two steps or batches; --resume goes on")
    ] = None,
) -> None:
    """Run a manifest: convert, train and measure, group by group."""
    from caramba_core.errors import InputError
    from caramba_core.manifest.load import load_manifest
    from caramba_core.places import expanded
    from caramba_core.plugins.registry import registry
    from caramba_core.run.experiment import Experiment

    if minutes is not None and not minutes >= 0:
        raise InputError(f"--minutes is {minutes}", expected="a number from 0 on")
    if again and (resume or resume_from is not None):
        raise InputError("--again starts anew, and --resume goes on", expected="one of them")
    if resume_from is not None and not resume:
        raise InputError("--resume-from chooses a checkpoint to go on from", hint="add --resume")
    load = partial(load_manifest, manifest, overrides=set_ or [], fetch=True)
    if registry().hooks.follow(load=load):
        return
    experiment = Experiment(load(), group=group, run=run, output=expanded(output))
    experiment.complete(resume=resume, resume_from=resume_from, again=again, minutes=minutes, dry_run=dry_run)
    if not dry_run:
        experiment.report()
        experiment.verify()
