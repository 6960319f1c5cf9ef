"""Whether tensors fit a model: everything does, or every misfit is named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from caramba_terminal.numbers import format_indexes

from caramba_core.errors import InputError
from caramba_core.graph import ROOT, Graph, local_name

__all__ = ["refuse", "require_fit"]

_SHOWN = 40
"""Lines of an error: tensors that differ only in the index of their layer share one."""


def require_fit(origin: object, graph: Graph, stored: Iterable[tuple[str, str, tuple[int, ...]]]) -> None:
    """Raise :class:`InputError` unless the tensors of ``origin`` are the weights of a graph, in their shapes.

    ``stored`` gives the name of each tensor in ``origin``, that of the weight that it fills, and its shape.  Asked
    before a model is built, it keeps sizes that a configuration only claims from being allocated.
    """
    weights = {
        local_name(f"{node.name}.{name}"): weight.shape
        for node in graph.nodes().values()
        for name, weight in node.config.weights(node.width_in).items()
    }
    refuse(origin, list(_misfits(weights, stored)))


def refuse(origin: object, problems: Sequence[str]) -> None:
    """Raise :class:`InputError` that lists the problems of single tensors, if there are any."""
    if problems:
        lines = _grouped(problems)
        more = [] if len(lines) <= _SHOWN else [f"... and {len(lines) - _SHOWN} more of this kind"]
        raise InputError(
            f"{origin} does not fit the model ({len(problems)} of its tensors):\n    "
            + "\n    ".join(lines[:_SHOWN] + more),
            hint="compare the model's sizes with the checkpoint's; a damaged file must be fetched again",
        )


def _misfits(
    weights: Mapping[str, tuple[int, ...]], stored: Iterable[tuple[str, str, tuple[int, ...]]]
) -> Iterator[str]:
    """One sentence for each tensor or weight that does not fit."""
    given: dict[str, str] = {}
    for key, filled, sizes in stored:
        shape = list(sizes)
        if filled not in weights:
            yield f"{key} {shape} is in the checkpoint, and the model has no place for it"
        elif filled in given:
            yield f"{key} and {given[filled]} both fill {ROOT}.{filled}"
        elif shape != (expected := list(weights[filled])):
            yield f"{key} has shape {shape}, and {ROOT}.{filled} expects {expected}"
        given.setdefault(filled, key)
    for name, sizes in weights.items():
        if name not in given:
            yield f"{ROOT}.{name} {list(sizes)} is in the model, and the checkpoint does not hold it"


def _grouped(problems: Iterable[str]) -> list[str]:
    """Problems that differ only in the index of their layer as one line: ``blocks.{0-3, 7}.norm``."""
    groups: dict[str, set[int]] = {}
    for problem in problems:
        index = re.search(r"(?<=\.)\d+(?=\.)", problem)
        pattern = problem if index is None else re.sub(rf"(?<=\.){index[0]}(?=\.)", "{}", problem)
        groups.setdefault(pattern, set()).update([] if index is None else [int(index[0])])
    shown = {pattern: format_indexes(list(map(str, sorted(indexes)))) for pattern, indexes in groups.items()}
    return [pattern.replace("{}", text if text.isdigit() else f"{{{text}}}") for pattern, text in shown.items()]
