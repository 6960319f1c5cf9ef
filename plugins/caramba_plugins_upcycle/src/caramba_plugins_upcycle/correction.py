"""Refitting what a layer of the student puts out, behind everything that was converted before it.

The student's hidden states in front of a layer differ from the teacher's by then.  Where the layer's output is added to
those states, part of their error can be made good in the same place: with ``x`` and ``x'`` the states of teacher and
student and ``f(x)`` the teacher's output, the projection is refitted to ``f(x) + share (x - x')``.  The whole of it is
too much: what one layer's inputs cannot explain it would fit to noise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from caramba_core.component import Layer
from caramba_plugins_upcycle.refit import Refit

__all__ = ["output_weights", "refit_output"]


def output_weights(config: Layer, module: nn.Module) -> tuple[nn.Parameter, nn.Parameter | None] | None:
    """The projection that a refit replaces, and its bias; none where the layer has no ``mix`` in front of one."""
    if config.output_weights is None or not hasattr(module, "mix"):
        return None
    projection, bias = (getattr(module, name, None) for name in config.output_weights)
    return None if projection is None else (projection, bias)


def refit_output(
    config: Layer,
    module: nn.Module,
    examples: Iterable[tuple[Tensor, Tensor]],
    ridge: float,
    *,
    products: torch.dtype = torch.float64,
) -> dict[str, Any]:
    """Refit a layer's output projection to pairs of what it mixes ``[B, T, n]`` and should give ``[B, T, D]``.

    ``products`` as :class:`Refit` has it: float32 leaves errors of about 1e-6, which the ridge divides by its size.
    The module gets new parameters; the old ones, which may be the teacher's, stay what they were.
    """
    found = output_weights(config, module)
    assert found is not None
    assert config.output_weights is not None
    projection, bias = found
    refit = Refit(projection.shape[1], projection.shape[0], projection.device, bias=bias is not None, products=products)
    for mixed, wanted in examples:
        refit.update(mixed, wanted)
    *solved, report = refit.solve(projection, bias, ridge)
    for name, old, new in zip(config.output_weights, found, solved, strict=True):
        if old is not None and new is not None:
            setattr(module, name, nn.Parameter(new.to(old), requires_grad=old.requires_grad))
    return attrs.asdict(report)
