"""Token arrays while they are being made: what is written survives a kill, and the next call goes on from there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from caramba_core.errors import InputError
from caramba_core.run.atomic import write_json
from caramba_plugins_standard.array_writing import write_header

if TYPE_CHECKING:
    from caramba_plugins_standard.encoding import Ids

__all__ = ["PartialArray", "PartialFolder"]

_BETWEEN: Final = 1.0
"""Seconds from one mark of what is safe on the disk to the next."""

_COUNTED: Final = 1 << 24
_SHARD: Final = 100_000_000
"""Tokens of one array of a folder: 200 MB, which are still checked against their hash when they are opened."""


class PartialArray:
    """``.FILE.npy.partial`` beside the array to be; ``.FILE.npy.partial.json`` marks how much of it is sound.

    ``key`` names what the array is made of: a part that was made of something else is begun anew.  ``facts`` go into
    the note.  ``batches`` and ``tokens`` are what is there already.  Raises :class:`InputError` where another process
    makes the same array.
    """

    def __init__(self, output: Path, key: str, facts: Mapping[str, Any], dtype: str) -> None:
        self._output = output
        self._key = key
        self._facts = facts
        self._dtype = dtype
        self._bytes = np.dtype(dtype).itemsize
        self._place = output.with_name(f".{output.name}.partial")
        self._mark = output.with_name(f".{output.name}.partial.json")
        self._file = os.fdopen(os.open(self._place, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise _contended(output) from error
        self.batches, self.tokens = self._marked()
        write_header(self._file, self.tokens, self._dtype)
        self._begin = self._file.tell()
        self._file.truncate(self._begin + self.tokens * self._bytes)
        self._file.seek(0, os.SEEK_END)
        self._marked_at = time.monotonic()

    def append(self, ids: Ids) -> None:
        """Add one batch."""
        assert ids.dtype == self._dtype
        self._file.write(ids.tobytes())
        self.batches += 1
        self.tokens += len(ids)
        if time.monotonic() - self._marked_at >= _BETWEEN:
            self.mark()

    def mark(self) -> None:
        """Make sure that what is there is on the disk, and say so for the next call."""
        self._file.flush()
        os.fsync(self._file.fileno())
        write_json(self._mark, {"key": self._key, "batches": self.batches, "tokens": self.tokens})
        self._marked_at = time.monotonic()

    def publish(self) -> int:
        """Let the array appear under its name, whole, and before it the note beside it, with counts and its hash.

        Gives the number of documents: one more than there are tokens that end one.
        """
        self._file.seek(0)
        write_header(self._file, self.tokens, self._dtype)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.seek(0)
        digest = hashlib.file_digest(self._file, "sha256").hexdigest()
        documents = 1
        if "end_of_text" in self._facts:
            ids = np.memmap(self._file, self._dtype, "r", self._begin, (self.tokens,))
            documents += sum(
                int(np.count_nonzero(ids[first : first + _COUNTED] == self._facts["end_of_text"]))
                for first in range(0, self.tokens, _COUNTED)
            )
        note = self._output.with_name(f"{self._output.name}.json")
        write_json(note, {**self._facts, "sha256": digest, "tokens": self.tokens, "documents": documents})
        self._place.replace(self._output)
        self._mark.unlink(missing_ok=True)
        self._file.close()
        return documents

    def discard(self) -> None:
        """Leave nothing behind."""
        self._place.unlink(missing_ok=True)
        self._mark.unlink(missing_ok=True)
        self._file.close()

    def close(self) -> None:
        """Leave what is there for the next call."""
        self._file.close()

    def _marked(self) -> tuple[int, int]:
        """Batches and tokens that an earlier call left, where it made the same array."""
        try:
            mark = json.loads(self._mark.read_text(encoding="utf-8"))
            batches, tokens = int(mark["batches"]), int(mark["tokens"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, 0
        size = os.fstat(self._file.fileno()).st_size
        return (batches, tokens) if mark["key"] == self._key and size >= tokens * self._bytes else (0, 0)


class PartialFolder:
    """``.FOLDER.partial`` beside a folder of arrays to be: those that are whole, and the one that is being made.

    Batches are not divided among arrays.  Otherwise as :class:`PartialArray`.
    """

    def __init__(self, output: Path, key: str, facts: Mapping[str, Any], dtype: str) -> None:
        self._output = output
        self._key = key
        self._facts = facts
        self._dtype = dtype
        self._place = output.with_name(f".{output.name}.partial")
        self._mark = self._place / "state.json"
        self._place.mkdir(exist_ok=True)
        self._lock = os.open(self._place, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise _contended(output) from error
        self._whole = self._marked()
        if not self._whole:  # what lies there may be of other texts
            for path in self._place.iterdir():
                if not path.name.startswith(".00000.npy"):  # of which the array looks itself
                    path.unlink()
        self._array = self._next()

    @property
    def batches(self) -> int:
        """Batches in all arrays."""
        return sum(batches for batches, _, _ in self._whole) + self._array.batches

    @property
    def tokens(self) -> int:
        """Tokens in all arrays."""
        return sum(tokens for _, tokens, _ in self._whole) + self._array.tokens

    def append(self, ids: Ids) -> None:
        """Add one batch; the next one goes to another array where this one is full."""
        self._array.append(ids)
        if self._array.tokens >= _SHARD:
            self._end_array()
            self._array = self._next()

    def publish(self) -> int:
        """Let the folder appear under its name, whole; gives the number of documents."""
        if self._array.tokens:
            self._end_array()
        else:
            self._array.discard()
        self._mark.unlink(missing_ok=True)
        self._place.rename(self._output)
        os.close(self._lock)
        return 1 + sum(documents - 1 for _, _, documents in self._whole)

    def discard(self) -> None:
        """Leave nothing behind."""
        self._array.close()
        shutil.rmtree(self._place)
        os.close(self._lock)

    def close(self) -> None:
        """Leave what is there for the next call."""
        self._array.close()
        os.close(self._lock)

    def _next(self) -> PartialArray:
        return PartialArray(self._place / f"{len(self._whole):05}.npy", self._key, self._facts, self._dtype)

    def _end_array(self) -> None:
        documents = self._array.publish()
        self._whole.append((self._array.batches, self._array.tokens, documents))
        write_json(self._mark, {"key": self._key, "arrays": self._whole})

    def _marked(self) -> list[tuple[int, int, int]]:
        """Of each array that an earlier call made whole, its batches, tokens and documents."""
        try:
            mark = json.loads(self._mark.read_text(encoding="utf-8"))
            if mark["key"] == self._key:
                return [(int(batches), int(tokens), int(documents)) for batches, tokens, documents in mark["arrays"]]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return []


def _contended(output: Path) -> InputError:
    return InputError(f"another process is making {output}", hint="wait for it, or name another")
