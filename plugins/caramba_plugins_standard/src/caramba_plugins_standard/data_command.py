"""``caramba data``: token arrays from texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(
    help="Make token arrays from texts.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


@app.callback()
def _root() -> None:
    """Make token arrays from texts."""


@app.command("prepare")
def prepare_texts(
    texts: Annotated[list[Path], typer.Argument(metavar="TEXT...", help="UTF-8 text files, in this order")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.npy", help="the array; it must not exist")],
    tokenizer: Annotated[
        str, typer.Option(help="checkpoint that carries the tokenizer: FILE, FOLDER or hf://org/repo, as for a teacher")
    ],
) -> None:
    """Encode texts; FILE.npy.json beside the array records the tokenizer, which runs compare with their teacher's."""
    from caramba_plugins_standard.tokenizing import prepare

    done = prepare(texts, output, tokenizer)
    typer.echo(f"wrote {done.path}: {done.tokens:,} tokens of the tokenizer {done.tokenizer[:12]}", err=True)
