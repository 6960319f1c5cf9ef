"""NaN and infinity in checkpoints, counted per tensor: in memory, and in files without loading them.

A file is read piece by piece into one buffer: memory does not grow with the size of a tensor, and a file that was cut
off meanwhile is an error, where reading it through its memory mapping would end the process.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from caramba_core.errors import InputError
from caramba_plugins_standard.loading import Stored

__all__ = ["count_nonfinite", "count_nonfinite_in_files"]

_PIECE = 1 << 20
"""Bytes read at once, a multiple of every item size: what fits the processor's cache is the quickest."""


def count_nonfinite(values: Tensor) -> Counter[str]:
    """How many values of a floating-point tensor are ``NaN``, and how many ``infinite``; empty where none is."""
    if math.isfinite(values.sum()):  # the quickest test: one NaN or infinity makes the sum one
        return Counter()
    if all(math.isfinite(bound) for bound in torch.aminmax(values)):  # the sum itself overflowed
        return Counter()
    return +Counter({"NaN": int(values.isnan().sum()), "infinite": int(values.isinf().sum())})


def count_nonfinite_in_files(tensors: Iterable[Stored]) -> dict[str, Counter[str]]:
    """The same by key, for tensors whose ``span`` says where they lie; its type must be a floating-point one.

    Raises :class:`InputError` where a file cannot be read or ends inside a tensor.
    """
    buffer = torch.empty(_PIECE, dtype=torch.uint8, device="cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for a piece of a file, torch's threads cost more than they give
    try:
        return {stored.key: _count_in_file(stored, buffer) for stored in tensors}
    finally:
        torch.set_num_threads(threads)


def _count_in_file(stored: Stored, buffer: Tensor) -> Counter[str]:
    span = stored.span
    assert span is not None
    dtype: torch.dtype = getattr(torch, span.dtype)
    left = math.prod(stored.shape) * dtype.itemsize
    counts: Counter[str] = Counter()
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
