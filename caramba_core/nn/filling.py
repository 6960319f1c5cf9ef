"""Filling a model from a checkpoint: everything fits, or nothing is used and every misfit is named."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from caramba_core.errors import InputError
from caramba_core.graph import ROOT, Graph
from caramba_core.loading import Checkpoint, FileSpan, Stored
from caramba_core.nn.finite import NonFinite, count_nonfinite, count_nonfinite_in_files
from caramba_core.nn.language_model import LanguageModel

__all__ = ["load_weights"]

_SHOWN = 40
"""Lines of an error: tensors that differ by the number of their layer alone share one."""


def load_weights(
    model: LanguageModel,
    checkpoint: Checkpoint,
    *,
    place: Callable[[tuple[str | int, ...]], str] | None = None,
) -> tuple[Stored, ...]:
    """Copy every tensor of a checkpoint into the model, converted to the model's device and dtype.

    Names and shapes are compared from the headers before any value is read.  Returns the tensors that the loader knows
    to be unneeded.  ``place`` turns a node's path in the manifest into ``file:line`` for messages.

    Raises :class:`InputError` that lists every parameter left empty, every tensor without a parameter, every shape that
    differs, and every tensor that holds NaN or infinity.
    """
    targets = model.state_dict(keep_vars=True)
    stored = checkpoint.layout()
    _refuse(checkpoint, _misfits(model.graph, targets, stored, place))
    entries = {entry.name: entry for entry in stored}
    mapped = [entry for entry in stored if entry.name is not None and _maps(targets[entry.name], entry.span)]
    checked = count_nonfinite_in_files(mapped)
    broken = [_broken(entry, _holding(counts, entry.shape)) for entry in mapped if (counts := checked[entry.key])]
    filled: set[str] = set()
    with torch.no_grad():
        for name, values in checkpoint.tensors():
            fault = None if entries[name].key in checked else _fault(values, targets[name])
            if fault is not None:
                broken.append(_broken(entries[name], fault))
            elif not broken:
                _fill(targets[name], values)
            filled.add(name)
    _refuse(checkpoint, broken)
    assert filled == set(targets), f"{checkpoint.path}: its layout and its tensors differ"
    return tuple(entry for entry in stored if entry.name is None)


def _fill(target: Tensor, values: Tensor) -> None:
    """Give a parameter its values: their own memory where type and device agree, so that nothing is held twice."""
    if values.dtype == target.dtype and values.device == target.device and values.is_contiguous():
        target.data = values
    else:
        target.copy_(values)


def _maps(target: Tensor, span: FileSpan | None) -> bool:
    """Whether a parameter will take the pages of a file as its values, which nobody looks at on the way."""
    return (
        span is not None
        and target.is_floating_point()
        and target.device.type == "cpu"
        and str(target.dtype) == f"torch.{span.dtype}"
    )


def _misfits(
    graph: Graph,
    targets: dict[str, Tensor],
    stored: Sequence[Stored],
    place: Callable[[tuple[str | int, ...]], str] | None,
) -> list[str]:
    """One sentence for each tensor or parameter that does not fit."""
    nodes = graph.nodes()

    def parameter(name: str) -> str:
        node = nodes.get(f"{ROOT}.{name.rpartition('.')[0]}")
        where = "" if place is None or node is None else f" ({place(node.path)})"
        return f"{ROOT}.{name}{where}"

    problems: list[str] = []
    given: dict[str, str] = {}
    for entry in stored:
        if entry.name is None:
            continue
        target = targets.get(entry.name)
        if target is None:
            problems.append(f"{entry.key} {list(entry.shape)} is in the checkpoint, and the model has no place for it")
        elif entry.name in given:
            problems.append(f"{entry.key} and {given[entry.name]} both fill {parameter(entry.name)}")
        elif tuple(target.shape) != entry.shape:
            problems.append(
                f"{entry.key} has shape {list(entry.shape)}, and {parameter(entry.name)} expects {list(target.shape)}"
            )
        given.setdefault(entry.name, entry.key)
    problems += [
        f"{parameter(name)} {list(target.shape)} is in the model, and the checkpoint does not hold it"
        for name, target in targets.items()
        if name not in given
    ]
    return problems


def _fault(values: Tensor, target: Tensor) -> str | None:
    """What is wrong with the values of a tensor, if anything."""
    if values.is_floating_point() != target.is_floating_point():
        wanted = "floating-point" if target.is_floating_point() else "whole"
        return f"holds {str(values.dtype).removeprefix('torch.')}, not {wanted} numbers"
    if values.is_floating_point() and (counts := count_nonfinite(values)):
        return _holding(counts, values.shape)
    return None


def _holding(counts: NonFinite, shape: Sequence[int]) -> str:
    return f"holds {counts} of {math.prod(shape)} values"


def _broken(entry: Stored, fault: str) -> str:
    return f"{entry.key} {fault} (fills {ROOT}.{entry.name})"


def _refuse(checkpoint: Checkpoint, problems: Sequence[str]) -> None:
    if problems:
        lines = _grouped(problems)
        more = [] if len(lines) <= _SHOWN else [f"... and {len(lines) - _SHOWN} more of this kind"]
        raise InputError(
            f"{checkpoint.path} does not fit the model ({len(problems)} of its tensors):\n    "
            + "\n    ".join(lines[:_SHOWN] + more),
            hint="compare the model's sizes with the checkpoint's; a damaged file must be fetched again",
        )


def _grouped(problems: Iterable[str]) -> list[str]:
    """Problems that differ in one number alone (the layer's) as one line: ``blocks.{0-3,7}.norm``."""
    groups: dict[str, list[int]] = {}
    for problem in problems:
        first = re.search(r"(?<=\.)\d+(?=\.)", problem)
        if first is None:
            groups[problem] = []
        else:
            pattern = re.sub(rf"(?<=\.){first[0]}(?=\.)", "{}", problem)
            groups.setdefault(pattern, []).append(int(first[0]))
    return [pattern.replace("{}", _ranges(numbers)) for pattern, numbers in groups.items()]


def _ranges(numbers: Iterable[int]) -> str:
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    return text if len(spans) == 1 and spans[0][0] == spans[0][1] else "{" + text + "}"
