"""The same bits from the same step, on CUDA too, so that a run that stopped goes on as if it had not.

Kernels that add with atomics (attention's backward pass, embeddings' gradients) give sums whose last bits depend on
timing; torch has slower ones that do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from caramba_core.errors import InputError
from caramba_plugins_standard.modes import CUBLAS_WORKSPACE

__all__ = ["deterministic"]


@contextmanager
def deterministic(run: str) -> Iterator[None]:
    """Only deterministic algorithms inside; as before outside.

    Raises :class:`InputError` where ``run`` computes something that has no deterministic algorithm.
    """
    memory: Any = torch.utils.deterministic  # its attributes are not known to type checkers
    before, fills = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # filling costs time, and no operation here reads such memory
    try:
        yield
    except RuntimeError as error:
        if "use_deterministic_algorithms" not in str(error):
            raise
        raise InputError(
            f"run {run}: train.deterministic asks for what this machine cannot do: {str(error).split('. ')[0]}",
            hint=f"leave train.deterministic out, or set {CUBLAS_WORKSPACE}=:4096:8 before caramba starts"
            if CUBLAS_WORKSPACE in str(error)
            else "leave train.deterministic out",
        ) from error
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = fills
