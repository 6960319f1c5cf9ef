"""Token ids in ``.npy`` files, memory-mapped: one array or many that follow each other."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from tokenize import TokenError
from typing import Any

import attrs
import numpy as np

from caramba_core.datasets import Ids
from caramba_core.errors import InputError
from caramba_plugins_standard.marks import BEGINS, Marked, MarkedTokens

__all__ = ["ArrayTokens", "Joined", "Shard", "map_array"]

_MAGIC = b"\x93NUMPY"
_BROKEN_HEADER = (ValueError, OSError, EOFError, TypeError, SyntaxError, OverflowError, TokenError)
"""What numpy raises for headers that are damaged in one way or another."""

_Array = np.ndarray[Any, np.dtype[np.integer[Any]]]


@attrs.frozen(eq=False)
class Shard:
    """A file's ids from index ``first`` on, and its ``stamp`` (size and time of change) before it was mapped."""

    path: Path
    stamp: tuple[int, int] | None
    ids: Ids
    first: int = 0

    @classmethod
    def of(cls, path: Path) -> Shard:
        """A whole file, mapped."""
        return cls(path, _stamp(path), map_array(path))

    def part(self, first: int, last: int) -> Shard:
        """Its ids ``first`` to ``last - 1``, as far as there are such."""
        first = max(first, 0)
        return attrs.evolve(self, ids=self.ids[first : max(first, last)], first=self.first + first)


class Joined:
    """Arrays that follow each other, sliced as one; a slice within one of them is not copied."""

    def __init__(self, arrays: Sequence[Ids]) -> None:
        self.arrays = arrays
        self.ends = tuple(accumulate(map(len, arrays)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, place: slice) -> _Array:
        first, last, step = place.indices(len(self))
        assert step == 1, "token ids are read in order"
        found: list[_Array] = []
        for index in range(bisect_right(self.ends, first), len(self.arrays)):
            begin = self.ends[index] - len(self.arrays[index])
            if begin >= last and found:
                break
            found.append(self.arrays[index][max(first - begin, 0) : max(last - begin, 0)])
        if not found:
            return np.empty(0, np.int64)
        return found[0] if len(found) == 1 else np.concatenate(found)


@attrs.frozen(kw_only=True, eq=False)
class ArrayTokens(MarkedTokens):
    """Token ids of files, each of which must stay as it is while it is read.

    ``separator`` ends each document, where documents are to be kept apart.
    """

    shards: tuple[Shard, ...]
    separator: int | None = None

    @classmethod
    def of(cls, shards: Sequence[Shard], **facts: Any) -> ArrayTokens:
        """The ids of files that follow each other."""
        arrays = [shard.ids for shard in shards]
        return cls(
            ids=arrays[0] if len(arrays) == 1 else Joined(arrays),
            parts=tuple((shard.path, shard.first, shard.first + len(shard.ids)) for shard in shards),
            shards=tuple(shards),
            **facts,
        )

    def read(self, first: int, last: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Ids ``first`` to ``last - 1``: int64; :class:`InputError` where a file that holds some has changed."""
        for shard in self.shards[self._shard(first) : self._shard(max(first, last - 1)) + 1]:
            if _stamp(shard.path) != shard.stamp:
                raise InputError(
                    f"{shard.path} has changed while its tokens were read",
                    hint="keep token arrays as they are while runs read them, and write others under other names",
                )
        return super().read(first, last)

    @property
    def has_marks(self) -> bool:
        """Whether documents are kept apart."""
        return self.separator is not None

    def marked(self, first: int, last: int) -> Marked:
        """The ids; a document begins behind each separator, and at ``first``."""
        found = self.read(first, last)
        if self.separator is not None:
            found[1:][found[:-1] == self.separator] |= BEGINS
        return found

    def place(self, index: int) -> tuple[str, int]:
        """The file of an id, and its index there."""
        shard = self._shard(index)
        begin = self.ids.ends[shard - 1] if shard and isinstance(self.ids, Joined) else 0
        name = self.origin if len(self.shards) == 1 else str(self.shards[shard].path)
        return name, self.shards[shard].first + index - begin

    def _shard(self, index: int) -> int:
        return 0 if not isinstance(self.ids, Joined) else min(bisect_right(self.ids.ends, index), len(self.shards) - 1)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of the last change of a file; ``None`` where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def map_array(path: Path) -> _Array:
    """The ids of a file, of one axis and an integer type, memory-mapped; :class:`InputError` where it holds others."""
    with path.open("rb") as file:
        magic = file.read(len(_MAGIC))
    if magic != _MAGIC:
        raise InputError(
            f"{path} is not a .npy file (it begins with {magic!r})", hint="write token ids with numpy.save(file, ids)"
        )
    try:
        array: _Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _BROKEN_HEADER as error:
        raise InputError(f"{path} cannot be read: {error}", hint="the file is damaged, or cut off") from error
    if array.dtype.kind not in "iu":
        raise InputError(
            f"{path} holds {array.dtype} values",
            expected="integer token ids (uint16, uint32, int32 or int64)",
            hint="token ids that passed through floating point may be rounded: make the array again",
        )
    if array.ndim != 1:
        raise InputError(f"{path} has shape {list(array.shape)}", expected="one axis: the token ids in order")
    if not len(array):
        raise InputError(f"{path} is empty", expected="token ids")
    return array
