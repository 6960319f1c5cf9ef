"""Values that lie in a file as they will in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caramba_core.errors import InputError

__all__ = ["read_raw"]


def read_raw(path: Path, offset: int, shape: tuple[int, ...], dtype: torch.dtype, key: str) -> Tensor:
    """A tensor from ``offset`` on; ``key`` names it in errors."""
    values = torch.empty(shape, dtype=dtype)
    buffer: Any = values.view(-1).view(torch.uint8).numpy()
    with path.open("rb", buffering=0) as file:
        at = file.seek(offset) - offset
        while at < len(buffer):  # one call reads 2 GiB at most
            count = file.readinto(buffer[at:])
            if not count:
                raise InputError(f"{path} ends inside {key}", hint="was it changed while it was read?")
            at += count
    return values
