"""Runs that cannot do their work on their group's model, found without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from caramba_document.problem import Fault

from caramba_core.errors import InputError, InvalidValue
from caramba_core.graph import Graph, trained_nodes
from caramba_core.lowered import group_path
from caramba_core.manifest.schema import Group
from caramba_core.modes import Run
from caramba_core.sites import Site

if TYPE_CHECKING:
    from caramba_core.manifest.load import Loaded

__all__ = ["pattern_faults", "run_faults"]


def pattern_faults(loaded: Loaded, group: Group, graph: Graph) -> Iterator[Fault]:
    """Patterns that match no node, and sets of those under ``trains`` that leave no weight to train."""
    for index, key in ((index, key) for index, each in enumerate(group.runs) for key in each.patterns):
        run = group.runs[index]
        path, chosen, unmatched = (*group_path(loaded, group), "runs", index, *key), set[str](), key != run.trains_key
        for place, pattern in enumerate(run.patterns[key]):
            try:
                chosen |= trained_nodes(graph, (pattern,))
            except InputError as error:
                unmatched = True
                yield Fault.of(error, *path, place)
        found = [node for node in graph.walk() if node.name in chosen]
        weights = (weight for node in found for weight in node.config.weights(node.width_in).values())
        if found and not unmatched and not any(weight.trainable for weight in weights):
            said = f"nothing would train: {found[0].name} has no weights of its own"
            yield Fault(path=path, message=said, expected="patterns of nodes that have weights")


def run_faults(loaded: Loaded, group: Group, run: Run, graph: Graph, sites: Sequence[Site]) -> Iterator[Fault]:
    """What a run of a group asks of its model, which differs from the teacher's (if any) in ``sites``, and has not."""
    path = (*group_path(loaded, group), "runs", group.runs.index(run))
    try:
        run.check_model(graph, sites)
    except InvalidValue as error:
        yield Fault.of(error, *path)
    if "weights" not in run.needs or (group.teacher is not None and not sites):
        return
    parent = loaded.manifest.parent_of(group, run)
    while parent is not None and not parent[1].changes_weights:
        parent = loaded.manifest.parent_of(*parent)
    if parent is None:
        which = f"those of {sites[0].name}" if sites else "its weights"
        said = f"mode {run.mode} needs a run before this one that trains or converts: {which} would be random"
        yield Fault(path=(*path, "mode"), message=said, hint="put it behind such a run, or name one with from:")
