"""Datasets: where the token ids of a group come from (configs; light)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import attrs

from caramba_core.components import Component, component
from caramba_core.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from caramba_core.teachers import Tokenizer

__all__ = ["Dataset", "Ids", "Tokens"]

_READ_WHOLE = 1 << 24
"""Token ids of an array that is checked and hashed whole; of a longer one a sample is, and the rest as it is read."""

_PIECE = 1 << 16
_PIECES = 64


class Ids(Protocol):
    """Token ids: a one-dimensional integer array, or what is sliced like one."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: slice, /) -> np.ndarray[Any, np.dtype[np.integer[Any]]]: ...


@attrs.frozen(kw_only=True)
class Tokens:
    """Token ids of a dataset, memory-mapped where possible.

    ``tokenizer`` is the identity of the tokenizer that made them, where known; ``origin`` names the source in messages.
    Ids must be below ``limit``.  ``parts`` are the files that they were read from, and from where in each to where: in
    tokens, or as fractions of a text.
    """

    ids: Ids
    tokenizer: str | None
    origin: str
    limit: int | None = None
    parts: tuple[tuple[Path, float, float], ...] = ()

    def read(self, first: int, last: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Ids ``first`` to ``last - 1``: int64; :class:`InputError` where one is negative or not below ``limit``."""
        import numpy as np

        part = self.ids[first:last].astype(np.int64)
        wrong = part < 0 if self.limit is None else (part < 0) | (part >= self.limit)
        if wrong.any():
            found, (where, index) = int(part[wrong][0]), self.place(first + int(wrong.argmax()))
            if found < 0:
                raise InputError(f"{where} holds the negative token id {found} at {index}", expected="ids from 0")
            raise InputError(
                f"{where} holds token id {found} at {index}, beyond the vocabulary",
                expected=f"ids below {self.limit}",
                hint="the array was made with another tokenizer; make it again with this model's",
            )
        return part

    def place(self, index: int) -> tuple[str, int]:
        """Where an id comes from, as messages say it: the name of its source, and its index there."""
        return self.origin, index

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
