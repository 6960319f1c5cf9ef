"""``caramba data``: token arrays from texts, and a look at what runs train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(
    help="Make token arrays from texts, and show what runs train on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    """Make token arrays from texts, and show what runs train on."""


@app.command("prepare")
def prepare_texts(
    texts: Annotated[
        list[Path],
        typer.Argument(
            metavar="TEXT...",
            help="UTF-8 texts, .jsonl files of one text a line, or .parquet files of one a row, in order",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.npy", help="the array; it must not exist")],
    tokenizer: Annotated[
        str, typer.Option(help="checkpoint that carries the tokenizer: FILE, FOLDER or hf://org/repo, as for a teacher")
    ],
    column: Annotated[str, typer.Option(help="key of the text in .jsonl files, its column in .parquet files")] = "text",
    tokens: Annotated[str | None, typer.Option(metavar="COUNT", help="stop behind so many, such as 100M")] = None,
    special_tokens: Annotated[
        bool, typer.Option("--special-tokens", help="read what spells a special token as one; it is text otherwise")
    ] = False,
    add_bos: Annotated[
        bool | None,
        typer.Option("--add-bos/--no-bos", help="begin each text with BOS; as the tokenizer if left out"),
    ] = None,
) -> None:
    """Encode texts; FILE.npy.json beside the array records the tokenizer, which runs compare with their teacher's.

    Memory does not grow with the texts. What was killed midway goes on from there when it is called again.
    """
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
            most=None if tokens is None else _count(tokens),
            progress=lambda size: bar.advance(task, size),
        )
    for warning in done.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if done.begun:
        typer.echo(f"went on behind {done.begun:,} tokens of an earlier call", err=True)
    typer.echo(f"wrote {done.path}: {done.tokens:,} tokens of the tokenizer {done.tokenizer[:12]}", err=True)


def _count(text: str) -> int:
    """The number that ``100M`` stands for."""
    import re

    from caramba_core.errors import InputError

    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kMB]?)", text)
    count = 0.0 if match is None else float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}[match[2]]
    if count < 1:
        raise InputError(f"--tokens {text} is no number of tokens", expected="a number such as 500k, 100M or 1.5B")
    return int(count)


@app.command("show")
def show_samples(
    manifest: Annotated[str, typer.Argument(help="a manifest file, or the name of a preset")],
    group: Annotated[str | None, typer.Option(help="only this group")] = None,
    run: Annotated[str | None, typer.Option(help="only this run; the first that trains if left out")] = None,
    first: Annotated[int, typer.Option(min=0, help="number of the first sample that is shown")] = 0,
    samples: Annotated[int, typer.Option("--samples", "-n", min=1, help="how many are shown")] = 2,
    tokenizer: Annotated[
        str | None, typer.Option(help="checkpoint that carries the tokenizer, where the group has no teacher")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="path=value, such as vars.sem_dim=24")] = None,
) -> None:
    """Show samples that a run trains on as text, with their documents; what is learned of them stands in brackets."""
    from rich.console import Console

    from caramba_plugins_standard.showing import shown_samples

    console = Console(highlight=False)
    for line in shown_samples(
        manifest, group=group, run=run, tokenizer=tokenizer, first=first, count=samples, overrides=set_ or []
    ):
        console.print(line, soft_wrap=True)
