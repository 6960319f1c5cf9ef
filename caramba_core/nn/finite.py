"""NaN and infinity in checkpoints, counted per tensor: in memory, and in files without loading them.

A file is read piece by piece into one buffer: memory does not grow with the size of a tensor, and a file that was cut
off meanwhile is an error, where reading it through its memory mapping would end the process.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import attrs
import torch
from torch import Tensor

from caramba_core.errors import InputError
from caramba_core.loading import Stored

__all__ = ["NonFinite", "count_nonfinite", "count_nonfinite_in_files"]

_PIECE = 1 << 20
"""Bytes read at once, a multiple of every item size: what fits the processor's cache is the quickest."""


@attrs.frozen
class NonFinite:
    """How many values are NaN, and how many are infinite."""

    nan: int = 0
    infinite: int = 0

    def __bool__(self) -> bool:
        return bool(self.nan or self.infinite)

    def __add__(self, other: NonFinite) -> NonFinite:
        return NonFinite(self.nan + other.nan, self.infinite + other.infinite)

    def __str__(self) -> str:
        counts = ((self.nan, "NaN"), (self.infinite, "infinite"))
        return " and ".join(f"{count} {word}" for count, word in counts if count)


def count_nonfinite(values: Tensor) -> NonFinite:
    """NaN and infinity in a floating-point tensor of any shape."""
    if math.isfinite(values.sum()):  # the quickest test: one NaN or infinity makes the sum one
        return NonFinite()
    if all(math.isfinite(bound) for bound in torch.aminmax(values)):  # the sum itself overflowed
        return NonFinite()
    return NonFinite(int(values.isnan().sum()), int(values.isinf().sum()))


def count_nonfinite_in_files(tensors: Iterable[Stored]) -> dict[str, NonFinite]:
    """NaN and infinity by key, of tensors whose ``span`` says where they lie, in a floating-point type.

    Raises :class:`InputError` where a file cannot be read or ends inside a tensor.
    """
    buffer = torch.empty(_PIECE, dtype=torch.uint8, device="cpu")
    with _one_thread():
        return {stored.key: _count_in_file(stored, buffer) for stored in tensors}


def _count_in_file(stored: Stored, buffer: Tensor) -> NonFinite:
    span = stored.span
    assert span is not None
    dtype: torch.dtype = getattr(torch, span.dtype)
    left = math.prod(stored.shape) * dtype.itemsize
    counts = NonFinite()
    try:
        with span.path.open("rb") as file:
            file.seek(span.offset)
            while left:
                piece = buffer[:left]
                if file.readinto(piece.numpy().data) < len(piece):
                    raise InputError(f"{span.path} ends inside {stored.key}", hint="was it changed while it was read?")
                counts += count_nonfinite(piece.view(dtype))
                left -= len(piece)
    except OSError as error:
        raise InputError(f"{span.path} cannot be read: {error.strerror or error}") from error
    return counts


@contextmanager
def _one_thread() -> Iterator[None]:
    """For a piece of a file, torch's threads cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
