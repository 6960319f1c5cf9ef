"""Which device and number types a run computes with."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from caramba_core.errors import InputError

__all__ = ["autocast", "pick_device", "torch_dtype"]


def pick_device(wanted: str) -> torch.device:
    """The device a manifest asks for; ``auto`` takes CUDA, then MPS, then the CPU."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        wanted = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available.get(wanted, False):
        usable = ", ".join(name for name, there in available.items() if there)
        raise InputError(
            f"device {wanted} is not available on this machine",
            expected=f"one of: auto, {usable}",
            hint="set device: auto, or install a build of torch that supports this device",
        )
    return torch.device(wanted)


def torch_dtype(name: str) -> torch.dtype:
    """The torch type of a manifest's ``dtype``."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def autocast(device: torch.device, name: str) -> AbstractContextManager[Any]:
    """Computation on a device in the type of a manifest's ``dtype``; weights stay in the type that they have."""
    return torch.autocast(device.type, dtype=torch_dtype(name), enabled=name in ("bfloat16", "float16"))
