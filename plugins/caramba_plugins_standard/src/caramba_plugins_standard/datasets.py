"""Token arrays and texts as sources of tokens."""

from __future__ import annotations

import json
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, Literal

from caramba_core.component import component, option
from caramba_core.errors import InputError, InvalidValue
from caramba_core.training import Dataset, Tokens

if TYPE_CHECKING:
    import numpy as np

    from caramba_core.loading import Tokenizer

    Ids = np.ndarray[Any, np.dtype[np.integer[Any]]]

__all__ = ["TextFile", "TokenArray", "id_type", "read_text"]

_MAGIC = b"\x93NUMPY"
_WHOLE = (0.0, 1.0)
_HASHED_BYTES = 256 << 20
"""Files of up to this size are hashed when they are opened: it takes less than half a second."""
_BROKEN_HEADER = (ValueError, OSError, EOFError, TypeError, SyntaxError, OverflowError, TokenError)
"""What numpy raises for headers that are damaged in one way or another."""


@component
class _File(Dataset):
    """A file, or a part of one."""

    path: str = option(help="the file, relative to the manifest")
    part: tuple[float, float] = option(
        default=_WHOLE, help="which part is used: from this fraction of the file to that one", unit="of the file"
    )

    def __attrs_post_init__(self) -> None:
        first, last = self.part
        if not 0.0 <= first < last <= 1.0:
            raise InvalidValue("part", f"[{first}, {last}] is no part", expected="[A, B] with 0 <= A < B <= 1")

    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (Path(self.path),)

    def _find(self, folder: Path) -> Path:
        path = folder / Path(self.path).expanduser()
        if not path.is_file():
            found = "is not a file" if path.exists() else "does not exist"
            raise InputError(f"{path} {found}", expected="a file, relative to the manifest's folder")
        return path

    def _origin(self, path: Path) -> str:
        return str(path) if self.part == _WHOLE else f"{path} [{self.part[0]:g}, {self.part[1]:g}]"


@component
class TokenArray(_File):
    """Token ids in a ``.npy`` file: one axis of integers, read as they are needed.

    ``FILE.json`` beside it, where it exists, tells ``tokenizer`` (its identity), ``vocab_size``, ``tokens`` (how many)
    and ``sha256`` of the array.  A file of up to 256 MiB is checked against all of it; of a larger one the number of
    tokens and a sample of the ids are checked at once, and the other ids as they are read.
    """

    def open(self, folder: Path, tokenizer: Tokenizer | None) -> Tokens:
        """The ids, memory-mapped."""
        path = self._find(folder)
        ids = _read_array(path)
        note = _read_note(path)
        if not len(ids):
            raise InputError(f"{path} is empty", expected="token ids")
        if len(ids) != note.get("tokens", len(ids)):
            raise InputError(f"{path} holds {len(ids)} tokens", expected=f"{note['tokens']}, as {path}.json says")
        if "sha256" in note and path.stat().st_size <= _HASHED_BYTES:
            _check_hash(path, note["sha256"])
        first, last = (int(len(ids) * fraction) for fraction in self.part)
        if first == last:
            raise InputError(f"{self._origin(path)} holds no token of {len(ids)}")
        tokens = Tokens(ids=ids[first:last], tokenizer=note.get("tokenizer"), origin=self._origin(path), offset=first)
        return tokens.checked(note.get("vocab_size"))


@component
class TextFile(_File):
    """A UTF-8 text, encoded with the teacher's tokenizer.  Parts begin and end at line breaks."""

    def open(self, folder: Path, tokenizer: Tokenizer | None) -> Tokens:
        """The ids of the text."""
        import numpy as np

        path = self._find(folder)
        if tokenizer is None:
            raise InputError(
                f"{path} is a text, and there is no tokenizer to encode it with",
                expected="a teacher whose checkpoint carries a tokenizer",
                hint="encode the text beforehand and give the .npy array instead",
            )
        text = read_text(path)
        first, last = (_line_start(text, fraction) for fraction in self.part)
        ids = tokenizer.encode(text[first:last])
        if not ids:
            raise InputError(f"{self._origin(path)} holds no text")
        dtype = id_type(tokenizer, max(ids))
        return Tokens(ids=np.array(ids, dtype=dtype), tokenizer=tokenizer.identity, origin=self._origin(path))


def read_text(path: Path) -> str:
    """A UTF-8 text; :class:`InputError` where a file is none."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}", hint="save the text as UTF-8") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def id_type(tokenizer: Tokenizer, largest: int) -> Literal["uint16", "uint32"]:
    """The type of an array with ids up to ``largest``: of the whole vocabulary, whose size may leave ids out."""
    return "uint16" if max(tokenizer.vocab_size - 1, largest) < 2**16 else "uint32"


def _line_start(text: str, fraction: float) -> int:
    """The first line start at or behind this fraction of the text; its end where there is none."""
    place = int(len(text) * fraction)
    if place in (0, len(text)) or text[place - 1] == "\n":
        return place
    newline = text.find("\n", place)
    return len(text) if newline < 0 else newline + 1


def _read_array(path: Path) -> Ids:
    import numpy as np

    with path.open("rb") as file:
        magic = file.read(len(_MAGIC))
    if magic != _MAGIC:
        raise InputError(
            f"{path} is not a .npy file (it begins with {magic!r})", hint="write token ids with numpy.save(file, ids)"
        )
    try:
        array: Ids = np.load(path, mmap_mode="r", allow_pickle=False)
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
    return array


def _read_note(path: Path) -> dict[str, Any]:
    """What ``FILE.json`` tells, type-checked; empty where there is none."""
    file = path.with_name(f"{path.name}.json")
    if not file.exists():
        return {}
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if not isinstance(note, dict):
        raise InputError(f"{file} holds no mapping", expected="tokenizer, vocab_size, tokens, sha256")
    for name, kind in (("tokenizer", str), ("vocab_size", int), ("tokens", int), ("sha256", str)):
        if name in note and type(note[name]) is not kind:
            raise InputError(f"{file}: {name} is {note[name]!r}", expected=f"{'text' if kind is str else 'an integer'}")
    return note


def _check_hash(path: Path, expected: str) -> None:
    import hashlib

    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected.lower():
        raise InputError(
            f"{path} has SHA-256 {found}",
            expected=f"{expected}, as {path}.json says",
            hint="fetch or make the file again",
        )
