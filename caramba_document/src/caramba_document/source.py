"""Texts that a manifest is read from, places in them, and the guards in front of every parser."""

from __future__ import annotations

import codecs
import os
import re
import stat
from bisect import bisect_right
from functools import cached_property
from pathlib import Path as FilePath
from typing import Final, Unpack

import attrs

from caramba_document.problem import About, ManifestProblem

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

    @classmethod
    def nowhere(cls, name: str) -> TextSpan:
        """What problems point at that have no place in a text; ``name`` says it all."""
        return cls(SourceText(name=name, text="", placeless=True), 0, 0)

    @property
    def place(self) -> str:
        """``file:line:column``."""
        if self.source.placeless:
            return self.source.name
        line, column = self.source.place(self.start)
        return f"{self.source.name}:{line}:{column}"

    def problem(self, message: str, **about: Unpack[About]) -> ManifestProblem:
        """A problem that points here."""
        about["notes"] = (*about.get("notes", ()), *self.source.notes)
        if self.source.placeless:
            return ManifestProblem(file=self.source.name, message=message, **about)
        line, column = self.source.place(self.start)
        text = self.source.line(line)
        first = 0 if len(text) <= _LONG_LINE else max(0, column - 1 - _LONG_LINE // 2)
        last, end = self.source.place(max(self.start, self.end))
        return ManifestProblem(
            file=self.source.name,
            message=message,
            line=line,
            column=column,
            end_column=max(column + 1, end if last == line else len(text) + 1),
            excerpt=text[first : first + _LONG_LINE],
            excerpt_column=first + 1,
            **about,
        )

    def broken(self, message: str, **about: Unpack[About]) -> Broken:
        """The end of reading, for a problem that points here."""
        return Broken(self.problem(message, **about))


def read_source(file: FilePath, name: str) -> SourceText:
    """The text of a manifest's file; raises :class:`Broken` unless it is sound UTF-8 of bounded size."""
    nowhere = TextSpan.nowhere(name)
    content = _content(file, nowhere)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)) or content[:4].count(0) > 1:
        raise nowhere.broken("this file is UTF-16 or UTF-32 text", expected="UTF-8", hint="save it as UTF-8")
    content = content.removeprefix(codecs.BOM_UTF8)
    source = SourceText(name=name, text=content.decode("utf-8", errors="replace"), file=file)
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        start = len(content[: error.start].decode("utf-8"))
        raise TextSpan(source, start, start + 1).broken(
            f"this byte (0x{content[error.start]:02x}) is not UTF-8 text",
            expected="UTF-8",
            hint="save the file as UTF-8",
        ) from None
    check_characters(source)
    return source


def _content(file: FilePath, nowhere: TextSpan) -> bytes:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for a writer
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise nowhere.broken(f"this is {what}", expected="a manifest file")
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise nowhere.broken("there is no such file") from None
    except PermissionError:
        hint = f"give yourself the right to read it: chmod u+r {file}"
        raise nowhere.broken("this file may not be read", hint=hint) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise nowhere.broken(f"this file cannot be read: {reason}") from None
    if len(content) > MAX_BYTES:
        raise nowhere.broken(
            f"this file is too large for a manifest: {max(status.st_size, len(content)) / (1 << 20):.1f} MiB",
            expected=f"at most {MAX_BYTES // (1 << 20)} MiB",
            hint="use repeat: for layers that are alike, vars: and matrix: for variants",
        )
    return content


def check_characters(source: SourceText) -> None:
    """Raise :class:`Broken` for characters that YAML does not allow unescaped."""
    control = _NO_TEXT.search(source.text)
    if control is not None:
        message = f"the character U+{ord(control[0]):04X} cannot stand in a manifest"
        raise TextSpan(source, *control.span()).broken(message, expected="printable text")
