"""Files that were looked at and found sound: remembered between processes, so that only changed ones are read again.

As git does with its index: a file is taken to be what it was while its device, inode, size and both its times are what
they were.  Whoever writes to it, or puts another in its place, changes one of these; the time of the last change of the
inode cannot be set back, as that of the content can.  A mark is an empty file in the user's cache folder, named by a
hash of all this and of what was looked at: there is nothing in it to be damaged or to be raced for.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from time import time

import attrs

from caramba_core.user_cache import user_cache

__all__ = ["Look"]

_SETTLED = 2.0
"""Seconds: times of files tick that coarsely on some systems, and a second change within a tick leaves no trace."""

_WORTH_REMEMBERING = 16 << 20
"""Bytes of a file: a smaller one is looked at again in next to no time."""

_KEPT = 90 * 24 * 3600.0
"""Seconds after which a mark goes; its file is then looked at again."""


@attrs.frozen
class Look:
    """A look at a file; :meth:`at` begins it.

    ``mark`` is the file that says that all was well.  There is none where the file has changed too lately for its times
    to tell whether it changes again, where it is small, or cannot be asked.
    """

    path: Path
    mark: Path | None

    @classmethod
    def at(cls, path: Path, what: str) -> Look:
        """The look that begins now, before anything is read; ``what`` says which parts are looked at, and for what."""
        return cls(path, _mark(path, what))

    def known_sound(self) -> bool:
        """Whether the same look at the same file, unchanged since, found nothing wrong."""
        try:
            return self.mark is not None and self.mark.is_file()
        except OSError:
            return False

    def remember_sound(self) -> None:
        """Say that nothing was wrong; of the file as it was when the look began, whatever became of it since."""
        if self.mark is None:
            return
        with contextlib.suppress(OSError):  # a read-only home loses the convenience, nothing else
            self.mark.parent.mkdir(parents=True, exist_ok=True)
            self.mark.touch()
            for mark in self.mark.parent.iterdir():
                if time() - mark.stat().st_mtime > _KEPT:
                    mark.unlink(missing_ok=True)


def _mark(path: Path, what: str) -> Path | None:
    try:
        status = path.stat()
        folder = user_cache() / "looked-at"
    except (OSError, RuntimeError):  # who reads the file will say what is wrong; without a home there are no marks
        return None
    if status.st_size < _WORTH_REMEMBERING or time() - max(status.st_mtime, status.st_ctime) < _SETTLED:
        return None
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, what)
    return folder / hashlib.sha256(repr(identity).encode()).hexdigest()
