"""The refits of one attention, in the order that the transplant's ``refits`` spells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from caramba_plugins_upcycle.transplant import Example
from torch import Tensor

from caramba_plugins_dba.module import DecoupledBottleneckModule
from caramba_plugins_dba.refine.logits import LogitFit
from caramba_plugins_dba.refine.mixtures import ValueFit

__all__ = ["refine"]


@torch.no_grad()
def refine(
    weights: Mapping[str, Tensor],
    module: DecoupledBottleneckModule,
    examples: Sequence[Example],
    *,
    refits: str,
    rows: int,
    logit_ridge: float,
    value_ridge: float,
    value_rounds: int,
    iterations: int,
) -> dict[str, Any]:
    """Refit what the module's sizes made lose something; exact starts stay as they are.

    The settings are the transplant's options of the same names.
    """
    config = module.config
    report: dict[str, Any] = {}
    windows = sum(example.x.shape[0] for example in examples)
    queries = -(-rows // windows)
    lossy_keys = config.geo_dim < config.n_kv_heads * config.head_dim
    every = config.n_kv_heads * config.head_dim
    lossy_values = config.v_dim < (2 * every - config.geo_dim if config.latent == "joint" else every)
    logits = [step for step in refits if step in "qk"]
    if lossy_keys and logits:
        fit = LogitFit(module, examples, queries=queries)
        errors = [fit.error()]
        for step in logits:
            (fit.queries if step == "q" else fit.keys)(ridge=logit_ridge, iterations=iterations)
            errors.append(fit.error())
        report["logits"] = errors
        del fit
    if lossy_values and config.v_layout == "latent" and "v" in refits:
        values = ValueFit(module, weights, examples, queries=queries)
        report["values"] = values.solve(rounds=value_rounds, iterations=iterations, ridge=value_ridge)
    return report
