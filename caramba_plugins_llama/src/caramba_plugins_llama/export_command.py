"""``caramba export``: hand a run's model on to other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["command"]


def command(
    run: Annotated[Path, typer.Argument(help="a run's folder, such as runs/NAME/GROUP/RUN")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the folder to write; it must not exist")],
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="type of the weights; auto keeps the widest of the checkpoint, which loses nothing"),
    ] = "auto",
    origin: Annotated[
        str | None,
        typer.Option(help="checkpoint whose tokenizer and settings go with the model; the run's teacher if not given"),
    ] = None,
) -> None:
    """Write a run's model as a Hugging Face folder.

    It holds weights, configuration, tokenizer and a model card.
    """
    from caramba_plugins_llama.export import export

    done = export(run, output, dtype=dtype, origin=origin)
    typer.echo(
        f"wrote {done.path}: {done.parameters:,} parameters in {done.dtype}, by the exporter {done.exporter}\n"
        f"  {', '.join(done.files)}",
        err=True,
    )
