"""Datasets: where the token ids of a group come from (configs; light)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from caramba_core.components import Component, component
from caramba_core.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from caramba_core.teachers import Tokenizer

__all__ = ["Dataset", "Tokens", "stamp_of"]

_READ_WHOLE = 1 << 24
"""Token ids of an array that is checked and hashed whole; of a longer one a sample is, and the rest as it is read."""

_PIECE = 1 << 16
_PIECES = 64


@attrs.frozen(kw_only=True)
class Tokens:
    """Token ids of a dataset: a one-dimensional integer array (memory-mapped where possible).

    ``tokenizer`` is the identity of the tokenizer that made them, where known; ``origin`` names the source in messages,
    where the first id has the index ``offset``.  Ids must be below ``limit``.  ``part`` is the file that they were read
    from, and from which fraction of it to which, where they come from one; ``stamp`` its size and time of change, where
    it must stay as it is while they are read.
    """

    ids: np.ndarray[Any, np.dtype[np.integer[Any]]]
    tokenizer: str | None
    origin: str
    offset: int = 0
    limit: int | None = None
    part: tuple[Path, float, float] | None = None
    stamp: tuple[int, int] | None = None

    def read(self, first: int, last: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Ids ``first`` to ``last - 1``: int64.

        Raises :class:`~caramba_core.errors.InputError` where one is negative or not below ``limit``, or the file has
        changed.
        """
        import numpy as np

        if self.stamp is not None and self.part is not None and stamp_of(self.part[0]) != self.stamp:
            raise InputError(
                f"{self.part[0]} has changed while its tokens were read",
                hint="keep token arrays as they are while runs read them, and write others under other names",
            )
        part = self.ids[first:last].astype(np.int64)
        wrong = part < 0 if self.limit is None else (part < 0) | (part >= self.limit)
        if wrong.any():
            place = int(wrong.argmax())
            found, index = int(part[place]), self.offset + first + place
            if found < 0:
                raise InputError(f"{self.origin} holds the negative token id {found} at {index}", expected="ids from 0")
            raise InputError(
                f"{self.origin} holds token id {found} at {index}, beyond the vocabulary",
                expected=f"ids below {self.limit}",
                hint="the array was made with another tokenizer; make it again with this model's",
            )
        return part

    @property
    def hash(self) -> str:
        """SHA-256 of the ids; of a long array, of a sample."""
        digest = hashlib.sha256(str(len(self.ids)).encode())
        for first in self._sampled():
            digest.update(self.read(first, first + _PIECE).astype("<u4").tobytes())
        return digest.hexdigest()

    def _sampled(self) -> range:
        """Where pieces of a sample begin; of a short array they are all of it."""
        count = len(self.ids)
        return range(0, count, _PIECE if count <= _READ_WHOLE else (count - _PIECE) // (_PIECES - 1))

    def checked(self, limit: int | None = None) -> Tokens:
        """The same tokens, whose ids are from 0 on and below ``limit``: all of a short array's, a sample of a long one.

        The rest of a long array is checked as it is read.
        """
        checked = attrs.evolve(self, limit=limit)
        for first in self._sampled():
            checked.read(first, first + _PIECE)
        return checked


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Size and time of the last change of a file; ``None`` where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


@component
class Dataset(Component):
    """A source of tokens."""

    kind: ClassVar[str] = "dataset"
    builds: ClassVar[str] = ""

    def files(self) -> tuple[Path, ...]:
        """What must exist before a run starts, relative to the manifest."""
        return ()

    def open(self, folder: Path, tokenizer: Tokenizer | None) -> Tokens:
        """The tokens; paths are relative to ``folder``, texts are encoded with ``tokenizer``.

        Raises :class:`~caramba_core.errors.InputError` for anything that is not a sound token source.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define open")
