"""Token arrays and texts as sources of tokens."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

from caramba_core.components import component, option
from caramba_core.datasets import Dataset, Tokens, stamp_of
from caramba_core.errors import InputError, InvalidValue
from caramba_core.places import expanded
from caramba_core.teachers import begin_of_text

if TYPE_CHECKING:
    import numpy as np

    from caramba_core.teachers import Tokenizer

    Ids = np.ndarray[Any, np.dtype[np.integer[Any]]]

__all__ = ["TextFile", "TokenArray"]

_MAGIC = b"\x93NUMPY"
_WHOLE = (0.0, 1.0)
_HASHED_BYTES = 256 << 20
"""Files of up to this size are hashed when they are opened: it takes less than half a second."""
_CACHED_CHARACTERS = 1 << 20
"""Texts of so many characters are kept encoded: a second of work."""
_ENCODED = 1
"""A number to raise when the same text and tokenizer come to give other ids."""
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
        path = folder / expanded(self.path)
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

    The file must stay as it is while a run reads it: each read looks for a change first, which ends the run with a
    sentence.  A file that is cut off within a read, which takes microseconds, ends the process (SIGBUS); one that is
    replaced by renaming another over it is safe.
    """

    def open(self, folder: Path, tokenizer: Tokenizer | None) -> Tokens:
        """The ids, memory-mapped."""
        path = self._find(folder)
        stamp = stamp_of(path)
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
        tokens = Tokens(
            ids=ids[first:last],
            tokenizer=note.get("tokenizer"),
            origin=self._origin(path),
            offset=first,
            part=(path, *self.part),
            stamp=stamp,
        )
        return tokens.checked(note.get("vocab_size"))


@component
class TextFile(_File):
    """A UTF-8 text, encoded with the teacher's tokenizer.  Parts begin and end at line breaks.

    The ids of a longer text are kept in the user's cache folder for the next time.
    """

    add_bos: bool | None = option(default=None, help="begin with BOS; as the checkpoint's tokenizer does if not given")
    special_tokens: bool = option(default=False, help="read what spells a special token as one; it is text otherwise")

    def open(self, folder: Path, tokenizer: Tokenizer | None) -> Tokens:
        """The ids of the text."""
        from caramba_plugins_standard.encoding import Encoding, encode, id_type
        from caramba_plugins_standard.texts import is_json_lines, read_text
        from caramba_plugins_standard.token_cache import cached_ids

        path = self._find(folder)
        if is_json_lines(path):
            raise InputError(
                f"{path} holds JSON lines, not one text",
                hint=f"make an array of their texts: caramba data prepare {path.name} -o FILE.npy --tokenizer ...",
            )
        if tokenizer is None:
            raise InputError(
                f"{path} is a text, and there is no tokenizer to encode it with",
                expected="a teacher whose checkpoint carries a tokenizer",
                hint="encode the text beforehand and give the .npy array instead",
            )
        text, origin = read_text(path), self._origin(path)
        first, last = (_line_start(text, fraction) for fraction in self.part)
        part = text[first:last]
        if not part:
            raise InputError(f"{origin} holds no text")
        bos = begin_of_text(tokenizer, self.add_bos, origin)
        facts = (_ENCODED, hashlib.sha256(part.encode()).hexdigest(), tokenizer.identity, self.special_tokens, bos)
        encoding = Encoding(add_bos=self.add_bos, special_tokens=self.special_tokens)
        ids = cached_ids(
            facts if len(part) >= _CACHED_CHARACTERS else None,
            lambda: encode([[part]], tokenizer, encoding, origin),
            id_type(tokenizer),
        )
        return Tokens(ids=ids, tokenizer=tokenizer.identity, origin=origin, part=(path, *self.part))


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
    if not file.is_file():
        raise InputError(f"{file} is not a file", expected="what data prepare wrote beside the array, or nothing")
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
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected.lower():
        raise InputError(
            f"{path} has SHA-256 {found}",
            expected=f"{expected}, as {path}.json says",
            hint="fetch or make the file again",
        )
