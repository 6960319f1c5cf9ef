"""Values that lie in a file as they will in memory: mapped, not read, so that a model of the file's type costs nothing.

A mapping is private (writing to a tensor never changes the file) and lazy (pages come from the file as they are used,
and go back when memory is short).  The file must stay as it is while a tensor of it lives; replacing it by renaming
another over it, as downloads and exports do, is safe.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import torch
from torch import Tensor

from caramba_core.errors import InputError

__all__ = ["MappedFile"]


class MappedFile:
    """One file, mapped as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def tensor(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype, key: str) -> Tensor:
        """The tensor from byte ``offset`` on; ``key`` names it in errors."""
        count = 1
        for size in shape:
            count *= size
        if offset + count * dtype.itemsize > len(self._map):
            raise InputError(f"{self.path} ends inside {key}", hint="was it changed while it was read?")
        if not count:
            return torch.empty(shape, dtype=dtype)
        if offset % dtype.itemsize:  # no processor likes numbers across their own boundaries
            unaligned = torch.frombuffer(self._map, dtype=torch.uint8, count=count * dtype.itemsize, offset=offset)
            return unaligned.clone().view(dtype).view(shape)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset).view(shape)

    def release(self, offset: int, size: int) -> None:
        """Give the pages of a tensor that nobody wrote to back; they are fetched anew where they are used again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            first = offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, first, offset + size - first)
