"""A report: one HTML page about runs that requests nothing and runs nothing, whatever stands in their folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
from caramba_terminal.numbers import format_average, format_bytes, format_count, format_measured

from caramba_core.errors import CarambaError, InputError
from caramba_core.run.atomic import publish_folder
from caramba_plugins_report.figures import against_cache, by_layer, by_step
from caramba_plugins_report.listing import as_data
from caramba_plugins_report.measured import Asked, Measured, measured
from caramba_plugins_report.plotting import Drawing
from caramba_plugins_report.records import number, runs_under
from caramba_plugins_report.rendering import file_name, filled, write_page
from caramba_plugins_report.whole import Whole, read_group

if TYPE_CHECKING:
    from caramba_core.manifest.load import Loaded
    from caramba_core.modes import Verify

__all__ = ["Report", "report_of", "verdict"]

_GROUND: Final = '<rect width="100%" height="100%" fill="#ffffff"/>'
_DEEPEST: Final = 12
"""Levels of nodes that the table of a plan descends."""


@attrs.frozen(kw_only=True)
class GroupReport:
    """The runs of a group, in the order of the manifest, and the figures about all of them and each."""

    name: str
    runs: list[Whole]
    verdict: str
    overview: Drawing | None
    drawings: dict[str, list[Drawing]]
    measured: Measured
    picture: str | None
    no_picture: str


@attrs.frozen(kw_only=True)
class Report:
    """A page: its title, and its groups; ``overview`` is over the runs of all groups where there are several."""

    title: str
    groups: list[GroupReport]
    overview: Drawing | None

    def html(self) -> str:
        """The page."""
        words = {"nodes": _nodes, "plan_facts": _plan_facts, "number": number, "version_rows": _version_rows}
        return filled("report.html", report=self, **words)

    def write(self, output: Path) -> None:
        """Write the page; it appears whole or not at all."""
        write_page(output, self.html())

    def as_data(self) -> dict[str, Any]:
        """What the page says, as plain data: verdicts, runs with their perplexities and intervals, decoding."""
        groups = [
            {
                "name": group.name,
                "verdict": group.verdict,
                "runs": [_run_data(run) for run in group.runs],
                "decoding": [one.as_data() for one in group.measured.speeds],
            }
            for group in self.groups
        ]
        return {"title": self.title, "groups": groups}

    def write_plots(self, folder: Path) -> list[Path]:
        """Write every figure as a file ``NAME.svg`` on white into a new folder."""
        if folder.exists():
            raise InputError(f"{folder} exists already", hint="name a new folder for the figures")
        with publish_folder(folder) as place:
            for drawing in self.drawings():
                head = '<?xml version="1.0" encoding="utf-8"?>\n'
                svg = re.sub(r"(<svg[^>]*>)", rf"\1{_GROUND}", drawing.svg, count=1)
                (place / f"{file_name(drawing.name)}.svg").write_text(head + svg, encoding="utf-8")
        return sorted(folder.iterdir())

    def drawings(self) -> Iterator[Drawing]:
        """All figures."""
        if self.overview is not None:
            yield self.overview
        for group in self.groups:
            if group.overview is not None:
                yield group.overview
            for run in group.runs:
                yield from group.drawings[run.id]
            yield from group.measured.drawings


def report_of(folder: Path, asked: Asked | None = None) -> Report:
    """The report about a run, a group or all groups of a name: of the runs at or under ``folder``.

    The figure over cached bytes shows the whole group of a run.  What is ``asked`` for beside what runs wrote is
    measured now.  Raises :class:`InputError` where there are no runs, and for what cannot be measured.
    """
    paths = runs_under(folder)
    if not paths:
        raise InputError(f"{folder} holds no run", expected="the folder of a run, of a group or of a manifest's name")
    by_group: dict[Path, list[Path]] = {}
    for path in paths:
        by_group.setdefault(path.resolve().parent, []).append(path)
    several = len(by_group) > 1
    groups = []
    for place, own in by_group.items():
        runs = read_group(own)
        shown = read_group(runs_under(place)) if len(own) == 1 else runs
        info = runs[0].info
        name = f"{info.name}_{info.group}_ratio_against_cache"
        loaded = _loaded(runs)
        picture, no_picture = _picture(loaded, info.group)
        groups.append(
            GroupReport(
                name=f"{info.name} / {info.group}",
                runs=runs,
                verdict=verdict(runs, _thresholds(loaded, info.group)),
                overview=None if several else against_cache(shown, name),
                drawings={run.id: [*by_step(run), *by_layer(run)] for run in runs},
                measured=Measured() if asked is None else measured(runs, asked),
                picture=picture,
                no_picture=no_picture,
            )
        )
    everything = [run for group in groups for run in group.runs]
    title = groups[0].name if len(groups) == 1 else folder.resolve().name
    title = f"{title} / {everything[0].id}" if len(everything) == 1 else title
    overview = against_cache(everything, "ratio_against_cache") if several else None
    return Report(title=title, groups=groups, overview=overview)


def verdict(runs: Sequence[Whole], thresholds: Mapping[str, Verify]) -> str:
    """One sentence: what the last run of a group that was measured gave, or why there is none.

    ``thresholds`` are what the manifest asks of runs, by their names.
    """
    measured = [run for run in runs if run.perplexity("end") is not None]
    if not measured:
        left = [run for run in runs if run.info.status != "done"]
        if left:
            return f"There is no result yet: {left[-1].id} is {left[-1].info.status} at step {left[-1].info.step:,}."
        return "The runs are done, and none of them measured perplexity on held-out tokens."
    run = measured[-1]
    end, teacher, start = (run.perplexity(name) for name in ("end", "teacher", "start"))
    assert end is not None
    tokens = number(run.summary, "scored_tokens")
    on = f" on {tokens:,} held-out tokens" if tokens else ""
    if teacher is None:
        came = "" if start is None else f", from {start[0]:,.2f} at its start"
        said = f"After {run.id}, the perplexity{on} is {format_measured(*end)}{came}"
    else:
        ratio = number(run.summary, "perplexity_ratio", "end") or end[0] / teacher[0]
        paired = run.ratio("end")
        interval = None if paired is None else paired.interval
        lies = "" if interval is None else f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})"
        said = f"After {run.id}, the perplexity{on} is {ratio:.3f} times the teacher's{lies}"
    own, whole = (number(run.summary, "cache_bytes_per_token", name) for name in ("student", "teacher"))
    if own is not None:
        said += f", with {format_average(own)} cached bytes per token"
        said += f" instead of {format_average(whole)} ({own / whole:.0%})" if whole else ""
    asked = thresholds[run.id].judged(run.summary) if run.id in thresholds else ()
    said += "".join(f"; the manifest asks for {what}, which is {'met' if met else 'not met'}" for what, _, met in asked)
    behind = [other.id for other in runs[runs.index(run) + 1 :] if other.info.status != "done"]
    return f"{said}." + (f" Not finished: {', '.join(behind)}." if behind else "")


def _run_data(run: Whole) -> dict[str, Any]:
    paired = run.ratio("end")
    found = {name: run.perplexity(name) for name in ("teacher", "start", "end")}
    return {
        **as_data(run.info),
        "perplexities": {name: value[0] for name, value in found.items() if value is not None},
        "standard_errors": {name: value[1] for name, value in found.items() if value is not None},
        "ratio_interval_95": None if paired is None else paired.interval,
        "problems": list(run.problems),
    }


def _picture(loaded: Loaded | str, group: str) -> tuple[str | None, str]:
    """The picture of a group's model as SVG, or why there is none."""
    if isinstance(loaded, str):
        return None, loaded
    if group not in [one.name for one in loaded.manifest.groups]:
        return None, f"the manifest that its runs kept has no group {group}"
    if find_spec("caramba_plugins_draw") is None:
        return None, "caramba-plugins-draw is not installed, which draws models"
    from caramba_plugins_draw import picture

    from caramba_core.plan import plan_manifest

    try:
        return picture(plan_manifest(loaded, group=group)[0], ".svg"), ""
    except CarambaError as error:
        return None, str(error)


def _loaded(runs: Sequence[Whole]) -> Loaded | str:
    """The manifest that a group's runs kept, or why it cannot be read."""
    from caramba_core.manifest.load import load_manifest

    run = next((run for run in runs if run.manifest), None)
    try:
        return "no run kept its manifest" if run is None else load_manifest(str(run.info.path / "manifest.yml"))
    except CarambaError as error:
        return str(error)


def _thresholds(loaded: Loaded | str, group: str) -> dict[str, Verify]:
    runs = (
        ()
        if isinstance(loaded, str)
        else (each for one in loaded.manifest.groups if one.name == group for each in one.runs)
    )
    return {run.id: run.verify for run in runs if run.verify is not None}


# ------------------------------------------------------------------------------------------------ for the template


def _nodes(nodes: Any, depth: int = 0, times: int = 1) -> Iterator[dict[str, Any]]:
    """Rows of a plan's nodes, indented; repeated ones once."""
    for node in nodes if isinstance(nodes, list) and depth < _DEEPEST else ():
        if not isinstance(node, Mapping):
            continue
        inline = node.get("inline") is True
        if not inline:
            figures = (number(node, key) for key in ("parameters", "operations_per_token", "cache_bytes_per_token"))
            name = str(node.get("name", ""))
            yield {"name": name, "type": node.get("type"), "depth": depth, "times": times, "figures": list(figures)}
        scopes = node.get("scopes")
        for scope in scopes if isinstance(scopes, list) else ():
            if isinstance(scope, Mapping):
                names = scope.get("names")
                repeated = len(names) if isinstance(names, list) and not inline else times
                yield from _nodes(scope.get("nodes"), depth + (not inline), repeated)


def _plan_facts(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a plan says of a model and its teacher, with units."""
    found = []
    for title, key in (("model", "model"), ("teacher", "teacher")):
        part = plan.get(key)
        if not isinstance(part, Mapping):
            continue
        facts = (
            ("parameters", number(part, "parameters"), format_count),
            ("weights", number(part, "weight_bytes"), format_bytes),
            ("operations per token, forward", number(part, "operations_per_token", "forward"), format_count),
            ("cached bytes per token", number(part, "cache", "bytes_per_token"), format_average),
        )
        found += [(f"{title}: {name}", write(value)) for name, value, write in facts if value is not None]
    return found


def _version_rows(runs: Iterable[Whole]) -> list[tuple[str, str]]:
    """Versions of distributions and the commit of the checkout that they ran from, with the runs that had others."""
    found: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        versions, commit = run.summary.get("versions"), run.summary.get("commit")
        named = dict(versions) if isinstance(versions, Mapping) else {}
        for name, version in (named | ({"commit": commit} if commit else {})).items():
            found.setdefault(str(name), {}).setdefault(str(version), []).append(run.id)
    return [
        (
            name,
            ", ".join(known)
            if len(known) == 1
            else ", ".join(f"{one} ({', '.join(ids)})" for one, ids in known.items()),
        )
        for name, known in found.items()
    ]
