"""Which device and number types a run computes with."""

from __future__ import annotations

import torch

from caramba_core.errors import InputError

__all__ = ["autocast_dtype", "pick_device", "torch_dtype"]


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


def autocast_dtype(name: str) -> torch.dtype | None:
    """The type to autocast to, or ``None`` where the computation is in full precision."""
    return torch_dtype(name) if name in ("bfloat16", "float16") else None
