"""Tasks of lm-eval: found, evaluated, and told as figures."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import Any, Final

from caramba_document.suggestions import listing, nearest, suggestion
from caramba_plugins_eval.metric import Figure
from caramba_plugins_eval.subject import Subject

from caramba_core.errors import InputError, PluginError
from caramba_core.places import expanded
from caramba_plugins_lm_eval.tasks import Tasks

__all__ = ["TASKS_VARIABLE", "find_tasks", "measure"]

TASKS_VARIABLE: Final = "CARAMBA_LM_EVAL_TASKS"
"""Names a folder of tasks; the user's own word, since such files can run code."""

_NORMAL: Final = 1.96
_DRAWS: Final = 1000
"""Draws of the bootstrap, for standard errors that have no formula."""


def find_tasks(metric: Tasks) -> Any:
    """lm-eval's manager of tasks, which knows those of a metric.

    Raises :class:`PluginError` where lm-eval is not installed, :class:`InputError` for a task that nobody knows.
    """
    try:
        manager = import_module("lm_eval.tasks").TaskManager
    except ImportError as error:
        raise PluginError(
            f"{metric.called}: lm-eval cannot be imported: {error}",
            hint="pip install 'caramba-plugins-lm-eval[lm-eval]'",
        ) from error
    folder = os.environ.get(TASKS_VARIABLE)
    place = None if not folder else expanded(folder)
    if place is not None and not place.is_dir():
        raise InputError(f"{TASKS_VARIABLE} names {place}, which is no folder", expected="a folder of task files")
    found: Any = None
    unknown = list(metric.tasks)
    if place is not None:  # lm-eval's own thousands of files are read only where they are needed
        found, unknown = _known(manager(include_path=str(place), include_defaults=False), metric)
    if unknown:
        found, unknown = _known(manager(include_path=_own(place)), metric)
    if unknown:
        near = nearest(unknown[0], found.all_tasks)
        raise InputError(
            f"{metric.called}: lm-eval knows no task {unknown[0]!r}{suggestion(near)}",
            expected=None if near else f"such as {listing(found.all_tasks, most=8)}",
            hint=f"{TASKS_VARIABLE} names a folder of tasks of your own",
        )
    return found


def _own(place: Path | None) -> str | None:
    return None if place is None else str(place)


def _known(manager: Any, metric: Tasks) -> tuple[Any, list[str]]:
    """A manager, and the tasks that it does not know: by name alone, so that no name is taken for a file."""
    return manager, [task for task in metric.tasks if task not in manager.all_tasks]


def measure(metric: Tasks, subject: Subject) -> dict[str, Figure]:
    """Every number that lm-eval gives for the tasks, ``TASK.acc``, with the interval of its standard error."""
    manager = find_tasks(metric)
    model = import_module("caramba_plugins_lm_eval.model").CarambaLM(subject, context=metric.context)
    with subject.computing(), redirect_stdout(sys.stderr):
        results = import_module("lm_eval.evaluator").simple_evaluate(
            model=model,
            tasks=list(metric.tasks),
            num_fewshot=metric.fewshot,
            limit=metric.limit,
            bootstrap_iters=_DRAWS,
            log_samples=False,
            task_manager=manager,
            random_seed=subject.seed,
            numpy_random_seed=subject.seed,
            torch_random_seed=subject.seed,
            fewshot_random_seed=subject.seed,
        )
    found: dict[str, Figure] = {}
    for task, numbers in results["results"].items():
        for key, value in numbers.items():
            name, _, kind = key.partition(",")
            if name.endswith("_stderr") or not isinstance(value, int | float) or not isfinite(value) or not kind:
                continue
            error = numbers.get(f"{name}_stderr,{kind}")
            known = isinstance(error, int | float) and isfinite(error)
            interval = (value - _NORMAL * error, value + _NORMAL * error) if known else None
            full = f"{task}.{name}" if kind == "none" else f"{task}.{name}.{kind}"
            found[full] = Figure(value=float(value), interval=interval)
    return found
