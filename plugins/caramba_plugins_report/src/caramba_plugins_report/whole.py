"""All that a run's folder holds for its report; what is missing or damaged is noted, and the rest is there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
from caramba_plugins_standard.measurement import Measurement

from caramba_core.errors import InputError
from caramba_core.places import regular
from caramba_core.run.directory import RunDirectory, State
from caramba_plugins_report.comparing import Ratio, measurement, paired_ratio
from caramba_plugins_report.records import RunInfo, number, run_info, state_of, summary_of

__all__ = ["Whole", "read_group", "read_run"]

_MEASURED: Final = ("teacher", "start", "end")
_TABLES: Final = ("report.json", "eval.json")
"""Files of a run's folder with ``sections``: tables that plugins add as it ends, and of metrics measured later."""


@attrs.frozen(kw_only=True)
class Whole:
    """A run: where it stands, results, metrics of its steps, plan, notes of its conversion, and its problems."""

    info: RunInfo
    state: State | None
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    plan: dict[str, Any]
    calibration: dict[str, Any]
    sections: list[dict[str, Any]]
    manifest: str
    measured: dict[str, Measurement]
    problems: tuple[str, ...]

    @property
    def id(self) -> str:
        """The run's name in its group."""
        return self.info.run

    def setting(self, *path: str) -> Any:
        """A setting of the run as the manifest gave it; ``None`` where it gave none."""
        found: Any = {} if self.state is None else self.state.document
        for key in ("groups", self.info.group, "runs", self.info.run, *path):
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    def perplexity(self, name: str) -> tuple[float, float | None] | None:
        """The perplexity of ``teacher``, ``start`` or ``end``, and its standard error."""
        value = number(self.summary, "perplexity", name)
        return None if value is None else (value, number(self.summary, "perplexity_standard_error", name))

    def ratio(self, name: str) -> Ratio | None:
        """The perplexity of ``start`` or ``end`` over the teacher's on the same tokens."""
        end = self.measured.get(name, self.measured.get("start"))
        teacher = self.measured.get("teacher")
        return None if end is None or teacher is None or not self.summary else paired_ratio(end, teacher)


def read_group(paths: list[Path]) -> list[Whole]:
    """The runs of one group, in the order of its manifest."""
    runs = [read_run(path) for path in paths]
    planned: list[Any] = next((run.plan["runs"] for run in runs if isinstance(run.plan.get("runs"), list)), [])
    order = [one.get("id") for one in planned if isinstance(one, dict)]
    return sorted(runs, key=lambda run: (order.index(run.id) if run.id in order else len(order), run.id))


def read_run(path: Path) -> Whole:
    """All that a run's folder holds."""
    problems: list[str] = []

    def known(found: Any, empty: Any) -> Any:
        if isinstance(found, str):
            problems.append(found)
        return empty if isinstance(found, str) else found

    def attempt(read: Callable[[], Any], empty: Any) -> Any:
        try:
            return read()
        except FileNotFoundError:
            return empty
        except (InputError, OSError, ValueError, RecursionError) as error:
            problems.append(str(error))
            return empty

    state = known(state_of(path), None)
    summary = known(summary_of(path), {})
    if state is not None and state.error:
        problems.append(str(state.error))
    measured: dict[str, Measurement] = {}
    for name in _MEASURED:
        if (path / "evaluation" / f"{name}.npy").exists():
            found = attempt(lambda name=name: measurement(path, name), None)  # type: ignore[misc]
            measured |= {} if found is None else {name: found}
    tables = [attempt(lambda file=file: _mapping(path / file).get("sections"), None) for file in _TABLES]  # type: ignore[misc]
    sections = [one for found in tables if isinstance(found, list) for one in found]
    return Whole(
        info=run_info(path),
        state=state,
        summary=summary,
        metrics=attempt(RunDirectory(path).metrics, []),
        plan=attempt(lambda: _mapping(path / "plan.json"), {}),
        calibration=attempt(lambda: _mapping(path / "calibration.json"), {}),
        sections=[one for one in sections if _is_section(one)],
        manifest=attempt(lambda: regular(path / "manifest.yml").read_text(encoding="utf-8", errors="replace"), ""),
        measured=measured,
        problems=tuple(problems),
    )


def _mapping(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(regular(file).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{file} is damaged: it holds no mapping")
    return found


def _is_section(found: Any) -> bool:
    """Whether it is a table as :meth:`caramba_core.hookspecs.Section.data` gives it."""
    if not isinstance(found, dict) or not isinstance(found.get("columns"), list):
        return False
    rows = found.get("rows")
    return isinstance(rows, list) and all(isinstance(row, list) for row in rows)
