"""What a run that is out of memory is told: what its plan had predicted, and what takes less."""

from __future__ import annotations

from typing import Final

import torch
from caramba_terminal.numbers import format_bytes

from caramba_core.errors import ResourceExhausted
from caramba_core.run.context import RunContext
from caramba_core.run.device import memory_of
from caramba_plugins_standard.training import Training
from caramba_plugins_standard.training.planned import planned

__all__ = ["is_out_of_memory", "out_of_memory"]

_REFUSALS: Final = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")
"""What the CPU, Metal, the CUDA driver and cuBLAS say, which raise no error of their own kind."""

_NAMED: Final = 4
"""Purposes of memory that are named, the largest first."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, or Python, had no memory left."""
    refused = isinstance(error, RuntimeError) and any(words in str(error) for words in _REFUSALS)
    return refused or isinstance(error, MemoryError | torch.OutOfMemoryError)


def out_of_memory(error: BaseException, context: RunContext, settings: Training, step: int) -> ResourceExhausted:
    """The error with the figures of the run's plan, and how to need less of what takes most."""
    first = str(error).partition("\n")[0] or "the allocation failed"
    said, memory = f"out of memory in step {step}: {first}", planned(context).get("memory", {})
    predicted = {name: int(count) for name, count in memory.items() if count is not None and name != "shared"}
    total = predicted.pop("total", 0)
    largest = sorted((name for name in predicted if predicted[name]), key=lambda name: -predicted[name])
    if total:
        parts = ", ".join(f"{name} {format_bytes(predicted[name])}" for name in largest[:_NAMED])
        said += f"; the plan had predicted {format_bytes(total)} ({parts})"
    there = memory_of(context.device)
    if there:
        said += f", and {context.device.type} has {format_bytes(there)}"
    ways = dict.fromkeys(_way(name, settings) for name in largest[:_NAMED])
    hint = "; ".join(ways) or "a smaller batch_size or context takes less"
    if there and total < 0.8 * there:
        hint += "; other programs may hold memory, too"
    return ResourceExhausted(said, hint=hint)


def _way(purpose: str, settings: Training) -> str:
    """How to need less for a purpose."""
    rows = getattr(settings.strategy, "logit_rows", None)
    if purpose == "logits" and rows is not None:
        return f"lower train.strategy.logit_rows ({rows})"
    if purpose == "activations" and settings.activation_checkpointing == "none" and settings.cuda_graph is not True:
        return "compute activations again instead of keeping them (train.activation_checkpointing: full)"
    if purpose in ("activations", "working", "logits"):
        return (
            f"lower train.batch_size ({settings.batch_size}) and raise train.accumulate ({settings.accumulate}) as "
            f"much, which changes no step, or lower train.context ({settings.context})"
        )
    if purpose == "teacher":
        return "hold the teacher in bfloat16 (teacher.dtype)"
    return "train fewer nodes (train.trains)" + ("" if settings.lora else ", or adapters (train.lora)")
