"""Activation checkpointing: parts of a model whose activations are computed again in the backward pass, not kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from caramba_core.graph import local_name
from caramba_core.nn.language_model import LanguageModel
from caramba_plugins_standard.training.planning import recomputed_parts

__all__ = ["recompute_activations"]


def recompute_activations(model: LanguageModel, which: Literal["none", "full"] | tuple[str, ...]) -> None:
    """Keep the inputs of a model's blocks (``full``) or of nodes alone for the backward pass, which runs them again.

    What trains must be marked before.  Passes without a gradient stay as they are.
    """
    for name in recomputed_parts(model.graph, which):
        module = model.get_submodule(local_name(name))
        trains = any(parameter.requires_grad for parameter in module.parameters())
        module.forward = _recomputed(module.forward, trains)


def _recomputed(forward: Callable[..., Tensor], trains: bool) -> Callable[..., Tensor]:
    def run(x: Tensor, *others: Any) -> Tensor:
        if not torch.is_grad_enabled() or not (trains or x.requires_grad):
            return forward(x, *others)
        y = checkpoint(forward, x, *others, use_reentrant=False)
        assert isinstance(y, Tensor)
        return y

    return run
