"""Values that are no numbers: how many of a tensor are NaN or infinite, in memory and where they lie in files.

Files are read in pieces, by several threads, each into a buffer of its own: what that takes does not grow with a
tensor, and a file that was cut off meanwhile is an error, where touching its mapping would end the process.  A file
without fault is not read again until it changes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import attrs
import torch
from torch import Tensor

from caramba_core.errors import InputError
from caramba_core.loading import Stored
from caramba_core.nn.looked_at import Look

__all__ = ["NotNumbers", "not_numbers", "not_numbers_in_files"]

_PIECE = 4 << 20
"""Bytes read at once, a multiple of 8: each thread holds as many, and Python does a little for each piece."""

_WORTH_A_THREAD = 4 * _PIECE
"""Bytes: to look at fewer takes no longer than to start a thread."""

_MOST_THREADS = 16
"""More would wait for memory."""

_WORTH_TORCH_THREADS = 1 << 22
"""Values of a tensor in memory: to look at fewer takes no longer than to start torch's own threads."""


@attrs.frozen
class NotNumbers:
    """How many values are NaN, and how many are infinite."""

    nan: int = 0
    infinite: int = 0

    def __bool__(self) -> bool:
        return bool(self.nan or self.infinite)

    def __add__(self, other: NotNumbers) -> NotNumbers:
        return NotNumbers(self.nan + other.nan, self.infinite + other.infinite)

    def __str__(self) -> str:
        counts = ((self.nan, "NaN"), (self.infinite, "infinite"))
        return " and ".join(f"{count} {word}" for count, word in counts if count)


def not_numbers(values: Tensor) -> NotNumbers:
    """What a floating-point tensor holds that is no number; copies it only where there is something to count."""
    with _torch_threads(torch.get_num_threads() if values.numel() >= _WORTH_TORCH_THREADS else 1):
        return _counted(values)


def not_numbers_in_files(tensors: Collection[Stored]) -> dict[str, NotNumbers]:
    """The same by key, of tensors that have a span of a floating-point type.

    What was looked at before, in a file that has not changed since, is not read: see :mod:`caramba_core.nn.looked_at`.
    Raises :class:`InputError` where a file cannot be read, or ends inside a tensor.
    """
    found = {stored.key: NotNumbers() for stored in tensors}
    looks = _looks(tensors)
    unknown = [look for look in looks if not look.known_sound()]
    pieces = deque(piece for look in unknown for stored in looks[look] for piece in _pieces(stored))
    for key, counts in _looked(pieces):
        found[key] += counts
    for look in unknown:
        if not any(found[stored.key] for stored in looks[look]):
            look.remember_sound()
    return found


def _looks(tensors: Iterable[Stored]) -> dict[Look, list[Stored]]:
    """The tensors of each file, by the look at all of them that begins now."""
    files: dict[Path, list[Stored]] = {}
    for stored in tensors:
        if stored.span is not None:
            files.setdefault(stored.span.path, []).append(stored)
    return {Look.at(path, _extents(entries)): entries for path, entries in files.items()}


def _extents(entries: Iterable[Stored]) -> str:
    """What a look at tensors looks at, in words."""
    spans = [(stored.span.offset, math.prod(stored.shape), stored.span.dtype) for stored in entries if stored.span]
    return f"finite {spans}"


@attrs.frozen
class _Piece:
    """``size`` bytes of a file from ``offset`` on: a part of the tensor ``key``."""

    key: str
    path: Path
    offset: int
    size: int
    dtype: torch.dtype


def _pieces(stored: Stored) -> Iterator[_Piece]:
    assert stored.span is not None
    path, first = stored.span.path, stored.span.offset
    dtype = getattr(torch, stored.span.dtype)
    size = math.prod(stored.shape) * dtype.itemsize
    for at in range(0, size, _PIECE):
        yield _Piece(stored.key, path, first + at, min(_PIECE, size - at), dtype)


def _looked(pieces: deque[_Piece]) -> list[tuple[str, NotNumbers]]:
    """The keys of the pieces that hold what is no number, and how much; every key as often as it has such pieces."""
    worth = sum(piece.size for piece in pieces) // _WORTH_A_THREAD
    threads = min(worth, torch.get_num_threads(), _MOST_THREADS)
    with _torch_threads(1):
        return _look_together(pieces, threads) if threads > 1 else _look(pieces)


def _look_together(pieces: deque[_Piece], threads: int) -> list[tuple[str, NotNumbers]]:
    with ThreadPoolExecutor(threads) as pool:
        try:
            looking = [pool.submit(_look, pieces) for _ in range(threads)]
            return [broken for each in looking for broken in each.result()]
        finally:
            pieces.clear()  # after an error or an interrupt nobody begins another


def _look(pieces: deque[_Piece]) -> list[tuple[str, NotNumbers]]:
    """The same, of the pieces that this thread takes until none is left."""
    broken = []
    # aligned: to read into a bytearray takes twice as long
    buffer = torch.empty(_PIECE, dtype=torch.uint8, device="cpu")
    content = buffer.numpy()
    for path, group in groupby(_taken(pieces), key=lambda piece: piece.path):
        try:
            with path.open("rb") as file:
                for piece in group:
                    file.seek(piece.offset)
                    if file.readinto(content[: piece.size]) < piece.size:
                        raise InputError(f"{path} ends inside {piece.key}", hint="was it changed while it was read?")
                    if counts := _counted(buffer[: piece.size].view(piece.dtype)):
                        broken.append((piece.key, counts))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return broken


def _taken(pieces: deque[_Piece]) -> Iterator[_Piece]:
    """One after the other, until all threads together have taken all."""
    while True:
        try:
            yield pieces.popleft()
        except IndexError:
            return


def _counted(values: Tensor) -> NotNumbers:
    if math.isfinite(values.sum()):  # the quickest; one value that is no number makes the sum none
        return NotNumbers()
    if all(math.isfinite(bound) for bound in torch.aminmax(values)):  # it ran over
        return NotNumbers()
    return NotNumbers(int(values.isnan().sum()), int(values.isinf().sum()))


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Operations inside use so many of torch's own threads; threads that start inside too."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
