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
    output: Annotated[
        Path, typer.Option("--output", "-o", help="the folder, or FILE.gguf, to write; it must not exist")
    ],
    form: Annotated[
        str | None,
        typer.Option(
            "--as",
            help="llama or deepseek_v3 (transformers' own classes, no code), gguf (a file for llama.cpp), caramba (a "
            "folder with its own code), or what else an exporter writes; the first that can if not given",
        ),
    ] = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="type of the weights; auto keeps the widest of the checkpoint, which loses nothing"),
    ] = "auto",
    quant: Annotated[
        Literal["f32", "f16", "bf16", "q8_0"] | None, typer.Option(help="with --as gguf: the type of its matrices")
    ] = None,
    origin: Annotated[
        str | None,
        typer.Option(
            help="checkpoint whose tokenizer and settings go with the model; if not given, the run's teacher, or the "
            "checkpoint itself"
        ),
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="compare the logits of a text, in transformers or llama.cpp if installed"),
    ] = None,
) -> None:
    """Write a run's or a checkpoint's model as a Hugging Face folder, or as a GGUF file.

    A folder holds weights, configuration, tokenizer and a model card; a file all of it but the card.
    """
    from caramba_core.places import expanded
    from caramba_plugins_llama.export import export

    done = export(source, expanded(output), form=form, dtype=dtype, quant=quant, origin=origin, check=check)
    if done.unfinished is not None:
        typer.echo(f"warning: {done.unfinished}", err=True)
    typer.echo(
        f"wrote {done.path} as {done.form}: {done.parameters:,} parameters in {done.dtype}, by the exporter "
        f"{done.exporter}\n  {', '.join(done.files)}",
        err=True,
    )
    if done.checked is not None:
        typer.echo(f"  checked: {done.checked}", err=True)
    if form is None and done.others:
        typer.echo(f"  it can also be written {', '.join(f'--as {other}' for other in done.others)}", err=True)
