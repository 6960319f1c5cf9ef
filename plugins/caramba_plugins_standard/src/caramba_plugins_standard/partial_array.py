"""A token array while it is being made: what is written survives a kill, and the next call goes on from there."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
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

__all__ = ["PartialArray"]

_BETWEEN: Final = 1.0
"""Seconds from one mark of what is safe on the disk to the next."""


class PartialArray:
    """``.FILE.npy.partial`` beside the array to be; ``.FILE.npy.partial.json`` marks how much of it is sound.

    ``key`` names what the array is made of: a part that was made of something else is begun anew.  ``batches`` and
    ``tokens`` are what is there already.  Raises :class:`InputError` where another process makes the same array.
    """

    def __init__(self, output: Path, key: str, dtype: str) -> None:
        self._output = output
        self._key = key
        self._dtype = dtype
        self._bytes = np.dtype(dtype).itemsize
        self._place = output.with_name(f".{output.name}.partial")
        self._mark = output.with_name(f".{output.name}.partial.json")
        self._file = os.fdopen(os.open(self._place, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise InputError(f"another process is making {output}", hint="wait for it, or name another file") from error
        self.batches, self.tokens = self._marked()
        write_header(self._file, self.tokens, self._dtype)
        self._file.truncate(self._file.tell() + self.tokens * self._bytes)
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

    def publish(self, facts: Mapping[str, Any]) -> None:
        """Let the array appear under its name, whole, and before it the note beside it: ``facts`` and its hash."""
        self._file.seek(0)
        write_header(self._file, self.tokens, self._dtype)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.seek(0)
        digest = hashlib.file_digest(self._file, "sha256").hexdigest()
        note = self._output.with_name(f"{self._output.name}.json")
        write_json(note, {**facts, "sha256": digest, "tokens": self.tokens})
        self._place.replace(self._output)
        self._mark.unlink(missing_ok=True)
        self._file.close()

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
