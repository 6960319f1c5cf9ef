"""Texts, read as they are needed.  Files: of UTF-8, one text; of JSON lines, one a line; parquet, one a row."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import attrs

from caramba_core.errors import InputError

__all__ = [
    "FileTexts",
    "Texts",
    "is_json_lines",
    "json_objects",
    "looks_like_json_lines",
    "read_text",
    "require_text",
    "require_unicode",
]

_BLOCK: Final = 1 << 20
_ROWS: Final = 256
_LONGEST_LINE: Final = 1 << 28
"""Bytes of one line of JSON lines, which is read whole."""


class Texts(Protocol):
    """Texts in an order that stays."""

    @property
    def name(self) -> str:
        """What a note calls them."""

    @property
    def facts(self) -> list[Any]:
        """What they depend on, as JSON; other texts have other facts."""

    @property
    def size(self) -> int | None:
        """Bytes to be read, where that is known."""

    def read(self, progress: Callable[[int], None]) -> Iterator[Iterator[str]]:
        """Each text as parts that follow each other; ``progress`` is told of bytes as they are read."""


@attrs.frozen
class FileTexts:
    """The texts of a file; those of JSON lines and parquet stand under ``column``."""

    path: Path
    column: str = "text"

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def facts(self) -> list[Any]:
        """Where it lies, its size and time of change."""
        stat = self.path.stat()
        return [str(self.path.resolve()), stat.st_size, stat.st_mtime_ns, self.column]

    @property
    def size(self) -> int:
        """Bytes of the file; :class:`InputError` where there is none."""
        path = self.path
        try:
            if not path.is_file():
                found = "is not a file" if path.exists() else "does not exist"
                raise InputError(f"{path} {found}", expected="a file of texts")
            return path.stat().st_size
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error

    def read(self, progress: Callable[[int], None] = lambda size: None) -> Iterator[Iterator[str]]:
        """Each text as parts that follow each other."""
        if self.path.suffix.lower() == ".parquet":
            return _parquet(self.path, self.column, progress)
        if is_json_lines(self.path):
            return _json_lines(self.path, self.column, progress)
        return iter([_blocks(self.path, progress)])


def is_json_lines(path: Path) -> bool:
    """Whether a file's name says that each of its lines is a JSON object."""
    return path.suffix.lower() in (".jsonl", ".ndjson")


def looks_like_json_lines(path: Path) -> bool:
    """Whether a file begins with a line that is a JSON object."""
    with path.open("rb") as file:
        line = file.readline(1 << 16)
    if not line.lstrip(codecs.BOM_UTF8).startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def read_text(path: Path) -> str:
    """A whole file of UTF-8."""
    return "".join(_blocks(path, lambda size: None))


def _blocks(path: Path, progress: Callable[[int], None]) -> Iterator[str]:
    decoder, read = codecs.getincrementaldecoder("utf-8-sig")(), 0
    try:
        with path.open("rb") as file:
            while True:
                block = file.read(_BLOCK)
                read += len(block)
                yield decoder.decode(block, final=not block)
                progress(len(block))
                if not block:
                    return
    except UnicodeDecodeError as error:
        place = read - len(error.object) + error.start
        raise InputError(f"{path} is not UTF-8 at byte {place}", hint="save the text as UTF-8") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _parquet(path: Path, column: str, progress: Callable[[int], None]) -> Iterator[Iterator[str]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        hint = "pip install 'caramba-plugins-standard[parquet]'"
        raise InputError(f"{path} is read with pyarrow, which is not installed", hint=hint) from error
    size, done = path.stat().st_size, 0
    try:
        with parquet.ParquetFile(path) as file:
            names, count = file.schema_arrow.names, file.metadata.num_rows
            if column not in names:
                keys = ", ".join(map(repr, names))
                raise InputError(
                    f"{path}: there is no {column!r}; its columns: {keys}", hint="--column names the text's"
                )
            for batch in file.iter_batches(batch_size=_ROWS, columns=[column]):
                for row, text in enumerate(batch.column(0).to_pylist(), done + 1):
                    yield iter([require_text(text, f"{path}: row {row}: {column!r}")])
                progress(size * (done + len(batch)) // count - size * done // count)
                done += len(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as parquet: {str(error).partition(chr(10))[0]}") from error


def _json_lines(path: Path, column: str, progress: Callable[[int], None]) -> Iterator[Iterator[str]]:
    for place, found in json_objects(path, progress):
        yield iter([_text_of(found, column, place)])


def json_objects(path: Path, progress: Callable[[int], None] = lambda size: None) -> Iterator[tuple[str, Any]]:
    """The objects of a file of JSON lines with their places (``FILE:LINE``); ``progress`` is told of bytes read."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), 1):
                progress(len(line))
                if line.strip():
                    yield f"{path}:{number}", _object_of(line, f"{path}:{number}")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _object_of(line: bytes, place: str) -> dict[str, Any]:
    if len(line) == _LONGEST_LINE:
        raise InputError(f"{place}: the line is longer than {_LONGEST_LINE >> 20} MiB", expected="one object a line")
    try:
        found: Any = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: not UTF-8 at byte {error.start} of the line", hint="save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON: {error}", expected="one JSON object a line") from error
    if not isinstance(found, dict):
        raise InputError(f"{place}: not a JSON object", expected="one JSON object a line")
    return found


def _text_of(found: dict[str, Any], column: str, place: str) -> str:
    if column not in found:
        keys = ", ".join(map(repr, found)) or "none"
        raise InputError(
            f"{place}: there is no {column!r}; its keys: {keys}", hint="--column names the key of the text"
        )
    text = require_text(found[column], f"{place}: {column!r}")
    require_unicode(text, f"{place}: {column!r}")
    return text


def require_text(found: object, what: str) -> str:
    """The same, a string; :class:`InputError` for anything else."""
    if not isinstance(found, str):
        raise InputError(f"{what} is {type(found).__name__}, not text", expected="a string")
    return found


def require_unicode(text: str, what: str) -> None:
    """Raise :class:`InputError` for what JSON allows, and no encoding of Unicode: a half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{what} holds half of a surrogate pair at {error.start}") from error
