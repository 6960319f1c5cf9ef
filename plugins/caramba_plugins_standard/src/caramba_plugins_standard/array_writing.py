"""Writing ``.npy`` arrays whose values come in parts and whose length is known at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from caramba_plugins_standard.encoding import Ids

__all__ = ["write_array", "write_header"]


def write_array(file: IO[bytes], parts: Iterator[Ids], dtype: str) -> int:
    """Write a one-dimensional array, and give the number of its values."""
    count = 0
    write_header(file, count, dtype)
    begin = file.tell()
    for part in parts:
        assert part.dtype == dtype
        file.write(part.tobytes())
        count += len(part)
    file.seek(0)
    write_header(file, count, dtype)
    assert file.tell() == begin
    file.seek(0, os.SEEK_END)
    return count


def write_header(file: IO[bytes], count: int, dtype: str) -> None:
    """Write the header of an array of ``count`` values.

    numpy leaves room in it for a longer first axis, so that it can be written again once the length is known.
    """
    header: dict[str, Any] = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)
