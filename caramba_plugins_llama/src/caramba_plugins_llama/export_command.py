"""``caramba export``: hand a model on to other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["command"]


def command(
    source: Annotated[
        str,
        typer.Argument(
            help="a run's folder, such as runs/NAME/GROUP/RUN, or a checkpoint: FILE, FOLDER or hf://org/repo"
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="the folder to write; it must not exist")],
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="type of the weights; auto keeps the widest of the checkpoint, which loses nothing"),
    ] = "auto",
    origin: Annotated[
        str | None,
        typer.Option(
            help="checkpoint whose tokenizer and settings go with the model; if not given, the run's teacher, or the "
            "checkpoint itself"
        ),
    ] = None,
) -> None:
    """Write a run's or a checkpoint's model as a Hugging Face folder.

    It holds weights, configuration, tokenizer and a model card.
    """
    from caramba_core.places import expanded
    from caramba_plugins_llama.export import export

    done = export(source, expanded(output), dtype=dtype, origin=origin)
    if done.unfinished is not None:
        typer.echo(f"warning: {done.unfinished}", err=True)
    typer.echo(
        f"wrote {done.path}: {done.parameters:,} parameters in {done.dtype}, by the exporter {done.exporter}\n"
        f"  {', '.join(done.files)}",
        err=True,
    )
