"""The commands ``runs``, ``compare`` and ``report``; what they need is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from caramba_core.cli.completion import completed

__all__ = ["compare", "diff", "list_runs", "remove", "report", "show"]

AsJson = Annotated[bool, typer.Option("--json", help="as data")]
Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="a run's folder, or NAME/GROUP/RUN under runs/", autocompletion=completed("run_folder")
    ),
]


def list_runs(
    folder: Annotated[Path, typer.Argument(help="the folder that holds runs")] = Path("runs"),
    sort: Annotated[
        str, typer.Option(help="name, status, step, loss, perplexity, ratio, cache, age or size; -KEY sorts downwards")
    ] = "name",
    status: Annotated[
        str | None, typer.Option(help="only these: done, running, killed, interrupted, failed or damaged")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="only runs with such a NAME/GROUP/RUN: '*/finetune'")
    ] = None,
    settings: Annotated[
        bool, typer.Option("--settings", help="what differs in what runs of one name were asked, as columns")
    ] = False,
    json: AsJson = False,
) -> None:
    """List runs: status, step, loss, perplexity, ratio to the teacher, cached bytes per token, age.

    Sorted by size, it shows that, too; --json always gives it. With --settings a matrix is one table of its variables.
    """
    from fnmatch import fnmatchcase
    from json import dumps

    from caramba_core.places import expanded
    from caramba_plugins_report.listing import as_data, in_order, table, terminal_width
    from caramba_plugins_report.records import names_of, run_info, runs_under

    place = expanded(folder)
    paths = [path for path in runs_under(place) if name is None or fnmatchcase("/".join(names_of(path)), name)]
    runs = in_order([run_info(path) for path in paths], sort)
    chosen = [run for run in runs if status is None or run.status == status]
    asked = None
    if settings:
        from caramba_plugins_report.differences import varied

        chosen = [run for run in chosen if run.status != "damaged"]
        asked = varied([run.path for run in chosen])
    if json:
        data = [as_data(run) for run in chosen]
        for index, one in enumerate(data if asked is not None else ()):
            one["settings"] = {key: values[index] for key, values in (asked or {}).items()}
        typer.echo(dumps(data, indent=1))
    elif not chosen:
        such = f" with a name like {name}" if name is not None else ""
        typer.echo(f"no runs under {place}{such}" + ("" if status is None else f" are {status}"))
    else:
        sizes = sort.removeprefix("-") == "size"
        typer.echo(table(chosen, place, terminal_width(), sizes=sizes, settings=asked))


def show(run: Run, json: AsJson = False) -> None:
    """Show what one run's folder tells."""
    from json import dumps

    from caramba_core.run.directory import RunDirectory
    from caramba_plugins_report.listing import as_data, described
    from caramba_plugins_report.records import find_run, run_info, state_of, summary_of

    path = find_run(run)
    info, state, summary = run_info(path), state_of(path), summary_of(path)
    checkpoints = [found.name for found in RunDirectory(path).checkpoints()]
    problems = [found for found in (state, summary) if isinstance(found, str)]
    if not isinstance(state, str) and state.error:
        problems.append(str(state.error))
    if json:
        known = {} if isinstance(summary, str) else summary
        data = {**as_data(info), "checkpoints": checkpoints, "problems": problems, "summary": known}
        typer.echo(dumps(data, indent=1))
        return
    lines = [("run", str(path)), *described(info), ("checkpoints", ", ".join(checkpoints) or "none")]
    if not isinstance(state, str):
        lines += [("changed", str(change)) for change in state.changes]
    if not isinstance(summary, str):
        lines += [(name, _value(value)) for name, value in summary.items() if not isinstance(value, dict | list)]
        lines += [(name, _value(value)) for name, value in summary.items() if isinstance(value, dict | list)]
    lines += [("problem", problem) for problem in problems]
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        typer.echo(f"{name:<{width}}  {_printable(text)}")


def diff(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A", help="a run's folder, or NAME/GROUP/RUN under runs/", autocompletion=completed("run_folder")
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="another one", autocompletion=completed("run_folder"))],
    json: AsJson = False,
) -> None:
    """Say what differs between two runs: settings, by path, and results.

    Settings are those that the manifest gave once it was resolved. Exit code 0, whether they differ or not.
    """
    from json import dumps

    import attrs

    from caramba_plugins_report.differences import of_results, of_settings
    from caramba_plugins_report.records import find_run

    paths = find_run(a), find_run(b)
    found = {"settings": of_settings(*paths), "results": of_results(*paths)}
    if json:
        runs = {"a": str(paths[0]), "b": str(paths[1])}
        typer.echo(
            dumps({**runs, **{part: [attrs.asdict(one) for one in ones] for part, ones in found.items()}}, indent=1)
        )
        return
    for part, ones in found.items():
        typer.echo(f"{part}:" if ones else f"{part}: no difference")
        for one in ones:
            typer.echo(f"  {_printable(one.path)}\n    a: {_value(one.a)}\n    b: {_value(one.b)}")


def remove(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="folders of runs, or NAME/GROUP/RUN under runs/",
            autocompletion=completed("run_folder"),
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    json: AsJson = False,
) -> None:
    """Remove runs, and say what that frees.

    A run that a process works on is refused. What an earlier attempt left hidden beside a run stays.
    """
    import sys
    from json import dumps

    from caramba_terminal.numbers import format_bytes

    from caramba_core.errors import InputError
    from caramba_plugins_report.records import bytes_under, find_run
    from caramba_plugins_report.removing import continued_by, remove_run, require_removable

    paths = list(dict.fromkeys(find_run(run) for run in runs))
    for path in paths:
        require_removable(path)
    sizes = {path: bytes_under(path) for path in paths}
    going = {path.resolve() for path in paths}
    for path, size in sizes.items():
        after = [other for other in continued_by(path) if other not in going]
        told = f"; continued by {', '.join('/'.join(other.parts[-2:]) for other in after)}" if after else ""
        typer.echo(f"{path}: {format_bytes(size)}{told}", err=True)
    if not yes:
        if not sys.stdin.isatty():
            raise InputError("runs rm asks before it removes, and there is nobody to ask", hint="--yes removes at once")
        if not typer.confirm(f"remove {len(paths)} run{'s' * (len(paths) > 1)}?", err=True):
            typer.echo("nothing is removed", err=True)
            return
    for path in paths:
        remove_run(path)
    freed = sum(sizes.values())
    data = {"removed": [str(path) for path in paths], "freed_bytes": freed}
    typer.echo(dumps(data, indent=1) if json else f"freed {format_bytes(freed)}")


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN...",
            help="folders of runs, the first one the measure",
            autocompletion=completed("run_folder"),
        ),
    ],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="a page to write, with a figure")] = None,
    json: AsJson = False,
) -> None:
    """Compare perplexities of runs, paired token by token with the first.

    Of each: perplexity with its standard error, and the ratio to the first run's with its 95 % interval.
    """
    from json import dumps

    from caramba_core.errors import InputError
    from caramba_plugins_report.comparing import compare
    from caramba_plugins_report.records import find_run

    if len(runs) < 2:
        raise InputError("there is nothing to compare a single run with", expected="two runs or more")
    found = compare([find_run(run) for run in runs])
    if html is not None:
        from caramba_core.places import expanded
        from caramba_plugins_report.comparison_page import write_comparison

        write_comparison(found, expanded(html))
        typer.echo(f"wrote {html}", err=True)
    if json:
        typer.echo(dumps([one.as_data() for one in found], indent=1))
        return
    for one in found:
        error = "" if one.standard_error is None else f" ± {one.standard_error:.2f}"
        typer.echo(_printable(str(one.path)))
        typer.echo(f"  perplexity {one.perplexity:.3f}{error} on {one.tokens:,} tokens")
        if one.against is not None:
            ratio = one.against
            interval = (
                "" if ratio.interval is None else f", 95 % interval {ratio.interval[0]:.4f} to {ratio.interval[1]:.4f}"
            )
            spread = "" if ratio.standard_error is None else f" ± {ratio.standard_error:.5f}"
            typer.echo(f"  {ratio.ratio:.4f} times the first{interval}")
            typer.echo(f"  {ratio.difference:+.5f}{spread} nats per token")
        for note in one.notes:
            typer.echo(f"  measured otherwise than the first: {note}")


def report(
    runs: Annotated[
        str,
        typer.Argument(
            metavar="RUN|GROUP|NAME",
            help="a folder of runs, or its name under runs/",
            autocompletion=completed("folder_of_runs"),
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="the file to write: report.html, and none with --json")
    ] = None,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="a new folder for the figures as SVG files")] = None,
    decoding: Annotated[
        str | None,
        typer.Option(metavar="CONTEXTS", help="measure decoding and cache behind so many tokens: 256,1024,4096"),
    ] = None,
    attention: Annotated[
        list[str] | None,
        typer.Option(metavar="BLOCK", help="show what this attention looks at: its place from 0 on, or its name"),
    ] = None,
    device: Annotated[str, typer.Option(help="what measures: auto, cpu, cuda or mps")] = "auto",
    json: AsJson = False,
) -> None:
    """Write a page about runs: verdict, table, curves, plan, samples, manifest.

    It is one HTML file that requests nothing.

    What --decoding and --attention ask for is measured now, on the last run with a checkpoint and on its teacher.
    """
    from json import dumps

    from caramba_core.places import expanded
    from caramba_plugins_report.measured import Asked
    from caramba_plugins_report.page import report_of
    from caramba_plugins_report.speed import contexts_of

    place = expanded(runs)
    if not place.exists() and (Path("runs") / runs).is_dir():
        place = Path("runs") / runs
    asked = Asked(
        contexts=[] if decoding is None else contexts_of(decoding),
        attentions=attention or [],
        device=device,
        tell=lambda text: typer.echo(text, err=True),
    )
    made = report_of(place, asked)
    if plots is not None:
        made.write_plots(expanded(plots))
    page = output if output is not None or json else Path("report.html")
    if page is not None:
        made.write(expanded(page))
    written = [str(page)] * (page is not None) + [f"{plots}/"] * (plots is not None)
    if written:
        typer.echo(f"wrote {' and '.join(written)}", err=True)
    if json:
        typer.echo(dumps(made.as_data(), indent=1, default=str))


def _value(value: Any) -> str:
    from json import dumps

    if isinstance(value, dict):
        return ", ".join(f"{_printable(str(key))} {_value(each)}" for key, each in value.items())
    return "-" if value is None else _printable(value if isinstance(value, str) else dumps(value, ensure_ascii=False))


def _printable(text: str) -> str:
    """A text on one line, without what a terminal would obey."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
