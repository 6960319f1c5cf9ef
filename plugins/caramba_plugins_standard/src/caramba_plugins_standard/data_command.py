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
    texts: Annotated[
        list[Path], typer.Argument(metavar="TEXT...", help="UTF-8 texts, or .jsonl files of one text a line, in order")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.npy", help="the array; it must not exist")],
    tokenizer: Annotated[
        str, typer.Option(help="checkpoint that carries the tokenizer: FILE, FOLDER or hf://org/repo, as for a teacher")
    ],
    column: Annotated[str, typer.Option(help="key of the text in each line of a .jsonl file")] = "text",
    special_tokens: Annotated[
        bool, typer.Option("--special-tokens", help="read what spells a special token as one; it is text otherwise")
    ] = False,
    add_bos: Annotated[
        bool | None,
        typer.Option("--add-bos/--no-bos", help="begin each text with BOS; as the tokenizer if left out"),
    ] = None,
) -> None:
    """Encode texts; FILE.npy.json beside the array records the tokenizer, which runs compare with their teacher's."""
    from rich.console import Console
    from rich.progress import Progress

    from caramba_core.places import expanded
    from caramba_plugins_standard.encoding import Encoding
    from caramba_plugins_standard.tokenizing import prepare

    encoding = Encoding(add_bos=add_bos, special_tokens=special_tokens)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("encoding", total=sum(path.stat().st_size for path in texts if path.is_file()))
        done = prepare(
            texts,
            expanded(output),
            tokenizer,
            encoding=encoding,
            column=column,
            progress=lambda size: bar.advance(task, size),
        )
    for warning in done.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"wrote {done.path}: {done.tokens:,} tokens of the tokenizer {done.tokenizer[:12]}", err=True)
