"""The graphs of a manifest that has been read; faults become problems with their places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from caramba_core.errors import ManifestError
from caramba_core.graph import Graph
from caramba_core.lowering import LoweringError, lower
from caramba_core.manifest.faults import Fault
from caramba_core.manifest.problem import ManifestProblem
from caramba_core.manifest.schema import Group

if TYPE_CHECKING:
    from caramba_core.manifest.load import Loaded

__all__ = ["group_path", "located", "lower_all", "lower_group"]


def lower_group(loaded: Loaded, group: Group) -> Graph:
    """The graph of one group's model; raises :class:`ManifestError` with every fault."""
    try:
        return lower(group.model, (*group_path(loaded, group), "model"))
    except LoweringError as error:
        raise ManifestError(located(loaded, error.faults)) from None


def lower_all(loaded: Loaded) -> tuple[Graph, dict[str, Graph]]:
    """The graph of the manifest's own model and those of its groups, by name.

    Raises :class:`ManifestError` with the faults of all of them; groups that share a model share its faults.
    """
    manifest = loaded.manifest
    faults: list[Fault] = []
    models = [(None, manifest.model), *((group, group.model) for group in manifest.groups)]
    graphs: list[tuple[Group | None, Graph]] = []
    for group, model in models:
        path = ("model",) if group is None else (*group_path(loaded, group), "model")
        try:
            graphs.append((group, lower(model, path)))
        except LoweringError as error:
            faults.extend(error.faults)
    if faults:
        raise ManifestError(located(loaded, faults))
    return graphs[0][1], {group.name: graph for group, graph in graphs if group is not None}


def group_path(loaded: Loaded, group: Group) -> tuple[str | int, ...]:
    """Where a group stands in the resolved manifest."""
    return "groups", next(index for index, other in enumerate(loaded.manifest.groups) if other is group)


def located(loaded: Loaded, faults: Sequence[Fault]) -> tuple[ManifestProblem, ...]:
    """Faults where the user wrote what is at fault, each place and message once, in the order of the file."""
    once: dict[tuple[str, int | None, int | None, str], ManifestProblem] = {}
    for fault in faults:
        problem = loaded.problem_at(fault.path, fault.message, expected=fault.expected, hint=fault.hint)
        once.setdefault((problem.file, problem.line, problem.column, problem.message), problem)
    order = {problem.file: index for index, problem in reversed(list(enumerate(once.values())))}
    return tuple(sorted(once.values(), key=lambda p: (order[p.file], p.line or 0, p.column or 0)))
