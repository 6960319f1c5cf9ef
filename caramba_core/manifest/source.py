"""Texts that a manifest is read from, places in them, and the guards in front of every parser."""

from __future__ import annotations

import codecs
import os
import re
import stat
from bisect import bisect_right
from functools import cached_property
from pathlib import Path as FilePath
from typing import Final

import attrs

from caramba_core.manifest.problem import ManifestProblem, Path

__all__ = ["MAX_BYTES", "SUFFIXES", "Broken", "SourceText", "TextSpan", "check_characters", "read_source"]

MAX_BYTES: Final = 1 << 20
"""Size that a manifest may have: 1 MiB."""

SUFFIXES: Final = (".yml", ".yaml", ".json")
"""What a manifest's file name may end in."""

_LONG_LINE: Final = 400
"""Characters of a source line that a problem keeps."""

_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_NO_TEXT: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
"""What YAML 1.2 does not allow unescaped.  Written as what it allows, negated, it takes 4 ms more to compile."""


class Broken(Exception):  # noqa: N818 - never leaves this package
    """Reading cannot go on; the problem that says why."""

    def __init__(self, problem: ManifestProblem) -> None:
        super().__init__(problem.message)
        self.problem = problem


@attrs.frozen(kw_only=True, slots=False, eq=False)
class SourceText:
    """A text under the name that messages use for it.

    ``file`` is ``None`` for a text that is not a file; ``placeless`` marks what has no lines, and whose name says it
    all (a ``--set``, a key of a teacher's configuration).  ``notes`` tell how the text came in (``extended at
    m.yml:2:10``); every problem in it repeats them.  ``key`` is the key of the teacher's configuration that a value
    was taken from.
    """

    name: str
    text: str
    file: FilePath | None = None
    placeless: bool = False
    notes: tuple[str, ...] = ()
    key: str | None = None

    @cached_property
    def _starts(self) -> list[int]:
        """Offset of each line's first character; lines end with LF, CR LF or CR."""
        return [0, *(end.end() for end in _LINE_END.finditer(self.text))]

    def place(self, index: int) -> tuple[int, int]:
        """Line and column, from 1, of an offset into the text."""
        line = bisect_right(self._starts, index)
        return line, index - self._starts[line - 1] + 1

    def line(self, number: int) -> str:
        """The text of a line, without its end."""
        ends = [*self._starts[number : number + 1], len(self.text)]
        return self.text[self._starts[number - 1] : ends[0]].rstrip("\r\n")


@attrs.frozen(slots=True, eq=False)
class TextSpan:
    """A stretch of a source: offsets of its first character and of the one behind its last."""

    source: SourceText
    start: int
    end: int

    @property
    def place(self) -> str:
        """``file:line:column``."""
        if self.source.placeless:
            return self.source.name
        line, column = self.source.place(self.start)
        return f"{self.source.name}:{line}:{column}"

    def problem(
        self,
        message: str,
        *,
        path: Path = (),
        found: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
        notes: tuple[str, ...] = (),
    ) -> ManifestProblem:
        """A problem that points here."""
        line, column = self.source.place(self.start)
        text = self.source.line(line)
        first = 0 if len(text) <= _LONG_LINE else max(0, column - 1 - _LONG_LINE // 2)
        last_shown = first + _LONG_LINE
        last, end = self.source.place(max(self.start, self.end))
        return ManifestProblem(
            file=self.source.name,
            message=message,
            line=None if self.source.placeless else line,
            column=column,
            end_column=max(column + 1, end if last == line else len(text) + 1),
            path=path,
            found=found,
            expected=expected,
            hint=hint,
            excerpt=None if self.source.placeless else text[first:last_shown],
            excerpt_column=first + 1,
            notes=(*notes, *self.source.notes),
        )


def read_source(file: FilePath, name: str) -> SourceText:
    """The text of a manifest's file; raises :class:`Broken` unless it is sound UTF-8 of bounded size."""
    return decode(_bytes_of(file, name), name, file)


def _bytes_of(file: FilePath, name: str) -> bytes:
    def broken(message: str, *, expected: str | None = None, hint: str | None = None) -> Broken:
        return Broken(ManifestProblem(file=name, message=message, expected=expected, hint=hint))

    try:
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            raise broken("this is a folder", expected="a manifest file")
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for a writer
            raise broken("this is not a regular file", expected="a manifest file")
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise broken("there is no such file") from None
    except PermissionError:
        raise broken(
            "this file may not be read", hint=f"give yourself the right to read it: chmod u+r {file}"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise broken(f"this file cannot be read: {reason}") from None
    if len(content) > MAX_BYTES:
        size = max(status.st_size, len(content))
        raise broken(
            f"this file is too large for a manifest: {size / (1 << 20):.1f} MiB",
            expected=f"at most {MAX_BYTES // (1 << 20)} MiB",
            hint="use repeat: for layers that are alike, vars: and matrix: for variants",
        )
    return content


def decode(content: bytes, name: str, file: FilePath | None = None) -> SourceText:
    """Bytes as text; raises :class:`Broken` where they are not UTF-8, or hold characters that no text has."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)) or content[:4].count(0) > 1:
        raise Broken(
            ManifestProblem(
                file=name, message="this file is UTF-16 or UTF-32 text", expected="UTF-8", hint="save it as UTF-8"
            )
        )
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        readable = content.decode("utf-8", errors="replace")
        start = len(content[: error.start].decode("utf-8", errors="replace"))
        source = SourceText(name=name, text=readable, file=file)
        raise Broken(
            TextSpan(source, start, start + 1).problem(
                f"this byte (0x{content[error.start]:02x}) is not UTF-8 text",
                expected="UTF-8",
                hint="save the file as UTF-8",
            )
        ) from None
    source = SourceText(name=name, text=text, file=file)
    check_characters(source)
    return source


def check_characters(source: SourceText) -> None:
    """Raise :class:`Broken` for characters that YAML does not allow unescaped."""
    control = _NO_TEXT.search(source.text)
    if control is not None:
        raise Broken(
            TextSpan(source, control.start(), control.end()).problem(
                f"the character U+{ord(control.group()):04X} cannot stand in a manifest", expected="printable text"
            )
        )
