"""A training step as a GPU needs it to be recorded, checked without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from caramba_plugins_testing.case import Case, CheckFailed, check
from caramba_plugins_testing.subject import Subject, inputs

__all__ = ["recording"]


@check("a training step can be recorded as a CUDA graph: it stays on its device and waits for no value")
def recording(case: Case) -> None:
    """Forward and backward twice: on the CPU, to see tensors made of Python's numbers, and on a device that has shapes
    but no values, where whoever asks for one is found.
    """
    try:
        for device in ("cpu", "meta"):
            _step(case, device)
    except _Brought as brought:
        raise CheckFailed(
            f"a pass copies a tensor of {brought} values to its device, for which a GPU waits: make such "
            "tensors once, as buffers, or with torch.arange and the like, device=x.device"
        ) from brought
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckFailed(
            f"a pass needs values of its tensors on the CPU, or mixes devices, so that it cannot be "
            f"recorded as a CUDA graph: {reason}"
        ) from error


def _step(case: Case, device: str) -> None:
    subject = Subject(case, dtype=torch.float32)
    subject.model.to(device)
    x = inputs(case).float().to(device).requires_grad_()
    frame = subject.frame(x)
    with _NothingFromOutside():  # type: ignore[no-untyped-call]
        y = subject.run(x, frame)
        torch.autograd.backward(y, torch.ones_like(y))


class _Brought(Exception):  # noqa: N818 - a finding
    """So many values were written in Python."""


class _NothingFromOutside(TorchDispatchMode):
    """Finds tensors that are made of Python's numbers; a single number is no copy, kernels take it as an argument."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten.lift_fresh.default:
            made = args[0]
            if isinstance(made, Tensor) and made.dim():
                raise _Brought(made.numel())
        return func(*args, **(kwargs or {}))
