"""The command ``eval``; what it needs is imported when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from caramba_plugins_eval.metric import Metric
    from caramba_plugins_eval.mode import Thresholds

__all__ = ["command"]


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="a run's folder (runs/NAME/GROUP/RUN), or a checkpoint: FILE, FOLDER or hf://org/repo",
        ),
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="what is measured, several times; caramba plugins list names all, caramba explain NAME its settings. "
            "Perplexity and memory if not given, and agreement where there is a teacher"
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="a setting of a metric, such as passkey.contexts=[512,1024]")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="text or token ids to measure on, several times for figures of each, their mean and the worst; "
            "a run's held-out ones",
        ),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="checkpoint to compare with; a run's teacher")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="checkpoint that carries the tokenizer")
    ] = None,
    at_most: Annotated[
        list[str] | None, typer.Option(metavar="FIGURE=NUMBER", help="fail, with exit code 3, where it is larger")
    ] = None,
    at_least: Annotated[
        list[str] | None, typer.Option(metavar="FIGURE=NUMBER", help="fail, with exit code 3, where it is smaller")
    ] = None,
    step: Annotated[int | None, typer.Option(help="a run's checkpoint of this step; its last if not given")] = None,
    context: Annotated[int | None, typer.Option(help="tokens per window; as the run measures, or 1024", min=2)] = None,
    windows: Annotated[
        int | None, typer.Option(help="windows measured; as the run measures, of --data up to 32", min=1)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="windows per pass; as the run measures, or 1", min=1)] = None,
    cache: Annotated[
        str | None, typer.Option(help="how the cache stores keys and values: full, int8, int4; as the run measures")
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="auto takes CUDA, then MPS, then the CPU")
    ] = "auto",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "float64"] | None,
        typer.Option(help="type of the computation; the run's, float32 of a checkpoint"),
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of everything random", min=0)] = 0,
    json: Annotated[bool, typer.Option("--json", help="as data")] = False,
) -> None:
    """Measure a run's or a checkpoint's model: perplexity, agreement, retrieval, speed.

    Of a run, the figures are kept in its folder, as eval.json, and shown in its report.
    """
    from json import dumps

    from caramba_terminal.reporter import Reporter
    from caramba_terminal.tables import titled_table
    from rich.console import Console

    from caramba_core.errors import VerificationFailed
    from caramba_plugins_eval.opening import Asked, open_subject
    from caramba_plugins_eval.records import evaluated, keep
    from caramba_plugins_eval.results import figure_section

    chosen = None if metric is None else _metrics(metric, set_ or [])
    thresholds = _thresholds(at_most or [], at_least or [])
    asked = Asked(
        data=tuple(data or ()),
        teacher=teacher,
        tokenizer=tokenizer,
        step=step,
        device=device,
        dtype=dtype,
        cache=cache,
        context=context,
        windows=windows,
        batch_size=batch_size,
        seed=seed,
    )
    opened = open_subject(source, asked, Reporter(Console(stderr=True, highlight=False)))
    if chosen is None:
        compares = opened.subject.load_teacher is not None
        chosen = _metrics(["perplexity", *(["agreement"] if compares else []), "memory"], set_ or [])
    _check(thresholds, chosen, tuple(opened.subject.texts))
    found = evaluated(chosen, opened, thresholds)
    if opened.run is not None:
        keep(opened.run, found)
    if json:
        typer.echo(dumps(found, indent=1))
        if not all(judged["met"] for judged in found["verify"]):  # which the data tell: an error would be a second one
            raise typer.Exit(VerificationFailed.exit_code)
        return
    section = figure_section(found["metrics"])
    title = f"{source}: {section.title}"
    Console(highlight=False).print(titled_table(title, section.columns, section.rows))
    thresholds.require(source, found)


def _metrics(names: Sequence[str], settings: Sequence[str]) -> list[Metric]:
    """The metrics with these names, with what ``--set`` says of each; raises as a manifest does."""
    from caramba_document.overrides import apply, parse
    from caramba_document.reading import Reading
    from caramba_document.source import TextSpan
    from caramba_document.suggestions import unknown
    from caramba_document.tree import Gap, Map, plain, problem_at

    from caramba_core.errors import Faults, ManifestError
    from caramba_core.manifest.structure import Structurer
    from caramba_core.plugins.registry import registry
    from caramba_plugins_eval.metric import Metric

    reading = Reading()
    changes = parse(settings, reading)
    for change in changes:
        name, span = change.parts[0]
        if name not in names:
            message, expected = unknown(f"{name!r} is not measured", name, names, "a setting of {}")
            reading.report(span.problem(message, expected=expected))
    root = apply(Map({}, TextSpan.nowhere("--set")), changes, reading)
    if reading.problems:
        raise ManifestError(tuple(reading.problems))
    made, problems = [], []
    for name in dict.fromkeys(names):
        own = root.get(name)
        given = {} if own is None else plain(own)
        try:
            asked = {"type": name, **given} if isinstance(given, dict) else given
            made.append(Structurer(registry()).structure(asked, Metric))
        except Faults as error:
            place = Gap(TextSpan.nowhere(f"--metric {name}")) if own is None else own
            problems += [problem_at(place, fault) for fault in error.faults]
    if problems:
        raise ManifestError(tuple(problems))
    return made


def _thresholds(at_most: Sequence[str], at_least: Sequence[str]) -> Thresholds:
    from caramba_plugins_eval.mode import Thresholds

    return Thresholds(at_most=_bounds("--at-most", at_most), at_least=_bounds("--at-least", at_least))


def _bounds(option: str, texts: Sequence[str]) -> dict[str, float]:
    """``FIGURE=NUMBER`` of each text."""
    from math import isfinite

    from caramba_core.errors import InputError

    found: dict[str, float] = {}
    for text in texts:
        name, sign, number = text.partition("=")
        try:
            bound = float(number)
        except ValueError:
            bound = float("nan")
        if not (name and sign and isfinite(bound)):
            raise InputError(f"{option} {text} sets no threshold", expected="FIGURE=NUMBER, such as agreement.kl=0.05")
        found[name] = bound
    return found


def _check(thresholds: Thresholds, metrics: Sequence[Metric], texts: tuple[str, ...]) -> None:
    """Raise :class:`~caramba_core.errors.InputError` for a threshold of a figure that none of the metrics gives."""
    from caramba_core.errors import InputError, InvalidValue

    try:
        thresholds.check(tuple(metrics), texts)
    except InvalidValue as error:
        option = f"--{error.within[0]}".replace("_", "-")
        raise InputError(f"{option}: {error.message}", expected=error.expected) from None
