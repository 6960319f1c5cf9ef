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
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="UTF-8 texts, .jsonl files of one text a line, .parquet files of one a row, folders in the layout of "
            "a Hugging Face dataset, or datasets on the hub by name (ORG/NAME), in order",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR|FILE.npy", help="a folder of arrays, or one array; it must not exist"
        ),
    ],
    tokenizer: Annotated[
        str, typer.Option(help="checkpoint that carries the tokenizer: FILE, FOLDER or hf://org/repo, as for a teacher")
    ],
    column: Annotated[
        str, typer.Option(help="key of the text in .jsonl files, its column in .parquet files and datasets")
    ] = "text",
    tokens: Annotated[str | None, typer.Option(metavar="COUNT", help="stop behind so many, such as 100M")] = None,
    subset: Annotated[str | None, typer.Option(help="which subset of a dataset, where it has several")] = None,
    split: Annotated[str, typer.Option(help="which split of a dataset")] = "train",
    special_tokens: Annotated[
        bool, typer.Option("--special-tokens", help="read what spells a special token as one; it is text otherwise")
    ] = False,
    add_bos: Annotated[
        bool | None,
        typer.Option("--add-bos/--no-bos", help="begin each text with BOS; as the tokenizer if left out"),
    ] = None,
) -> None:
    """Encode texts; a note beside each array records the tokenizer, which runs compare with their teacher's.

    Memory does not grow with the texts, and datasets of the hub are streamed.

    What was killed midway goes on when it is called again.
    """
    from caramba_terminal.reporter import Reporter
    from rich.console import Console

    from caramba_core.places import expanded
    from caramba_plugins_standard.encoding import Encoding
    from caramba_plugins_standard.tokenizing import prepare, texts_named

    most = None if tokens is None else _count(tokens)
    named = [texts for name in sources for texts in texts_named(name, column=column, subset=subset, split=split)]
    encoding = Encoding(add_bos=add_bos, special_tokens=special_tokens)
    sizes = [one.size for one in named]
    by_bytes = most is None and None not in sizes
    total = sum(size or 0 for size in sizes) if by_bytes else most
    written = 0
    reporter = Reporter(Console(stderr=True, highlight=False))
    with reporter.bar("encoding", total, unit="bytes" if by_bytes else "tokens") as bar:

        def progress(size: int, count: int) -> None:
            nonlocal written
            written += count
            if by_bytes:
                bar.note(f"{written:,} tokens")
            bar.advance(size if by_bytes else count)

        done = prepare(named, expanded(output), tokenizer, encoding=encoding, most=most, progress=progress)
    for warning in done.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if done.begun:
        typer.echo(f"went on behind {done.begun:,} tokens of an earlier call", err=True)
    typer.echo(
        f"wrote {done.path}: {done.tokens:,} tokens of the tokenizer {done.tokenizer[:12]}, {done.documents:,} "
        f"document{'s' if done.documents > 1 else ''}",
        err=True,
    )


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
