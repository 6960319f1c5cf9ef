"""Filling a model from a checkpoint: everything fits, or nothing is used and every misfit is named."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from caramba_core.errors import InputError
from caramba_core.formatting import format_indexes
from caramba_core.graph import ROOT, Graph, local_name
from caramba_core.loading import Checkpoint, Stored
from caramba_core.nn.finite import count_nonfinite, count_nonfinite_in_files
from caramba_core.nn.language_model import LanguageModel

__all__ = ["load_weights", "require_fit"]

_SHOWN = 40
"""Lines of an error: tensors that differ only in the index of their layer share one."""


def weight_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of a graph, by its name without ``model.``."""
    return {
        local_name(f"{node.name}.{name}"): weight.shape
        for node in graph.nodes().values()
        for name, weight in node.config.weights(node.width_in).items()
    }


def load_weights(model: LanguageModel, checkpoint: Checkpoint) -> tuple[Stored, ...]:
    """Fill the model with every tensor of a checkpoint, converted to the model's device and dtype.

    Returns the tensors that the loader knows to be unneeded.  Raises :class:`InputError` as :func:`require_fit` does,
    and for every tensor that holds NaN or infinity.
    """
    stored, targets = checkpoint.layout(), model.state_dict(keep_vars=True)
    require_fit(model.graph, stored, checkpoint.path)
    used = {entry.name: entry for entry in stored if entry.name is not None}
    checked = count_nonfinite_in_files(entry for name, entry in used.items() if _is_mapped(entry, targets[name]))
    faults = [_nonfinite(entry, counts) for entry in used.values() if (counts := checked.get(entry.key))]
    with torch.no_grad():
        for name, values in checkpoint.tensors():
            entry, target = used.pop(name), targets[name]
            if entry.key not in checked:
                faults += _faults(entry, values, target)
            if not faults:
                _fill(target, values)
    _refuse(checkpoint.path, faults)
    assert not used, f"{checkpoint.path}: its layout and its tensors differ"
    return tuple(entry for entry in stored if entry.name is None)


def require_fit(graph: Graph, stored: Iterable[Stored], origin: object) -> None:
    """Raise :class:`InputError` unless the tensors ``stored`` in ``origin`` have names and shapes of a graph's weights.

    It lists every weight left empty, every tensor without a weight, and every shape that differs.  Asked before a model
    is built, it keeps sizes that a configuration only claims from being allocated.
    """
    _refuse(origin, list(_misfits(weight_shapes(graph), stored)))


def _misfits(weights: Mapping[str, tuple[int, ...]], stored: Iterable[Stored]) -> Iterator[str]:
    """One sentence for each tensor or weight that does not fit."""
    given: dict[str, str] = {}
    for entry in stored:
        if entry.name is None:
            continue
        shape, place = list(entry.shape), f"{ROOT}.{entry.name}"
        if entry.name not in weights:
            yield f"{entry.key} {shape} is in the checkpoint, and the model has no place for it"
        elif entry.name in given:
            yield f"{entry.key} and {given[entry.name]} both fill {place}"
        elif shape != list(weights[entry.name]):
            yield f"{entry.key} has shape {shape}, and {place} expects {list(weights[entry.name])}"
        given.setdefault(entry.name, entry.key)
    for name, shape_ in weights.items():
        if name not in given:
            yield f"{ROOT}.{name} {list(shape_)} is in the model, and the checkpoint does not hold it"


def _is_mapped(entry: Stored, target: Tensor) -> bool:
    """Whether a parameter will take the pages of a file as its values, without anything that reads them on the way."""
    return (
        entry.span is not None
        and target.is_floating_point()
        and target.device.type == "cpu"
        and str(target.dtype) == f"torch.{entry.span.dtype}"
    )


def _fill(target: Tensor, values: Tensor) -> None:
    """Give a parameter its values: their own memory where type and device agree, so that nothing is held twice."""
    if values.dtype == target.dtype and values.device == target.device and values.is_contiguous():
        target.data = values
    else:
        target.copy_(values)


def _faults(entry: Stored, values: Tensor, target: Tensor) -> Iterator[str]:
    """What is wrong with the values of a tensor, if anything."""
    if values.is_floating_point() != target.is_floating_point():
        wanted = "floating-point" if target.is_floating_point() else "whole"
        yield _holds(entry, f"{str(values.dtype).removeprefix('torch.')}, not {wanted} numbers")
    elif values.is_floating_point() and (counts := count_nonfinite(values)):
        yield _nonfinite(entry, counts)


def _nonfinite(entry: Stored, counts: Counter[str]) -> str:
    words = " and ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    return _holds(entry, f"{words} of {math.prod(entry.shape)} values")


def _holds(entry: Stored, what: str) -> str:
    return f"{entry.key} holds {what} (fills {ROOT}.{entry.name})"


def _refuse(origin: object, problems: Sequence[str]) -> None:
    if problems:
        lines = _grouped(problems)
        more = [] if len(lines) <= _SHOWN else [f"... and {len(lines) - _SHOWN} more of this kind"]
        raise InputError(
            f"{origin} does not fit the model ({len(problems)} of its tensors):\n    "
            + "\n    ".join(lines[:_SHOWN] + more),
            hint="compare the model's sizes with the checkpoint's; a damaged file must be fetched again",
        )


def _grouped(problems: Iterable[str]) -> list[str]:
    """Problems that differ only in the index of their layer as one line: ``blocks.{0-3, 7}.norm``."""
    groups: dict[str, set[int]] = {}
    for problem in problems:
        index = re.search(r"(?<=\.)\d+(?=\.)", problem)
        pattern = problem if index is None else re.sub(rf"(?<=\.){index[0]}(?=\.)", "{}", problem)
        groups.setdefault(pattern, set()).update([] if index is None else [int(index[0])])
    shown = {pattern: format_indexes(list(map(str, sorted(indexes)))) for pattern, indexes in groups.items()}
    return [pattern.replace("{}", text if text.isdigit() else f"{{{text}}}") for pattern, text in shown.items()]
