"""Filling a model from a checkpoint: everything fits and is sound, or nothing is used and every fault is named."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor

from caramba_core.graph import ROOT, Graph
from caramba_core.nn.fitting import refuse, require_fit
from caramba_core.nn.language_model import LanguageModel
from caramba_plugins_standard.loading import Checkpoint, Stored
from caramba_plugins_standard.loading.finite import count_nonfinite, count_nonfinite_in_files

__all__ = ["load_weights", "require_weights"]


def require_weights(graph: Graph, checkpoint: Checkpoint) -> tuple[Stored, ...]:
    """Every tensor of a checkpoint by its headers, once names and shapes are known to be those of the graph's weights.

    Raises :class:`~caramba_core.errors.InputError` as :func:`caramba_core.nn.fitting.require_fit` does.
    """
    stored = checkpoint.layout()
    named = ((entry.key, entry.name, entry.shape) for entry in stored if entry.name is not None)
    require_fit(checkpoint.path, graph, named)
    return stored


def load_weights(model: LanguageModel, checkpoint: Checkpoint) -> tuple[Stored, ...]:
    """Fill the model with every tensor of a checkpoint, converted to the model's device and dtype.

    Returns the tensors that the loader knows to be unneeded.  Raises :class:`InputError` as
    :func:`require_weights` does, and for every tensor that holds NaN or infinity.
    """
    stored, targets = require_weights(model.graph, checkpoint), model.state_dict(keep_vars=True)
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
    refuse(checkpoint.path, faults)
    assert not used, f"{checkpoint.path}: its layout and its tensors differ"
    return tuple(entry for entry in stored if entry.name is None)


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
