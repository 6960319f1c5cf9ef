"""One thing that is wrong with a manifest, and how it is shown.

m.yml:9:27: error: model.layers.1.n_heads: expected an integer, found the string 'two'
   9 |     - {type: attn, n_heads: "two"}
     |                             ^^^^^
     = hint: ...
"""

from __future__ import annotations

import keyword
import unicodedata
from collections.abc import Iterable
from typing import Any, Final, Literal, TypeAlias, TypedDict

import attrs

__all__ = ["About", "Fault", "ManifestProblem", "Path", "dotted", "in_order", "key_of", "shown"]

Path: TypeAlias = "tuple[str | int, ...]"
"""Keys and indices that lead from the root of a manifest to a value."""

_LONGEST: Final = 600
"""Characters of a line of prose that are shown."""

_WIDEST: Final = 120
"""Columns of a source line that are shown."""

_QUOTED: Final = 60
"""Characters of a value that are shown."""


class About(TypedDict, total=False):
    """What a problem may say besides its message."""

    path: Path
    found: str | None
    expected: str | None
    hint: str | None
    notes: tuple[str, ...]


@attrs.frozen(kw_only=True)
class ManifestProblem:
    """What is wrong, where, and how to repair it.

    ``line``, ``column`` and ``end_column`` count from 1 in code points; ``line`` is ``None`` where a place has none (a
    file that cannot be read, a value given with ``--set``).  ``end_column`` is the column behind the last one marked.
    ``excerpt`` is the source line as it stands in the file, from ``excerpt_column`` on where it is very long.
    """

    file: str
    message: str
    line: int | None = None
    column: int | None = None
    end_column: int | None = None
    path: Path = ()
    found: str | None = None
    expected: str | None = None
    hint: str | None = None
    excerpt: str | None = None
    excerpt_column: int = 1
    notes: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """``file:line:column``, or the file alone."""
        return self.file if self.line is None else f"{self.file}:{self.line}:{self.column}"

    @property
    def headline(self) -> str:
        """What is wrong with which value, without the place."""
        return f"{dotted(self.path)}: {self.message}" if self.path else self.message

    def render(self) -> str:
        """The report of this problem as plain text of several lines."""
        lines = [f"{_line(self.place)}: error: {_line(self.headline)}"]
        number = "" if self.line is None else str(self.line)
        gutter = " " * max(5, len(number) + 1)
        if self.excerpt is not None and self.column is not None:
            shift = self.excerpt_column - 1
            end = (self.end_column or self.column + 1) - shift
            text, start, length = _cut(self.excerpt, self.column - shift, end)
            lines.append(f"{number:>{len(gutter)}} | {text}".rstrip())
            lines.append(f"{gutter} | {' ' * start}{'^' * length}")
        expected = None if self.expected is not None and self.expected in self.message else self.expected
        more = (("expected", expected), ("hint", self.hint), *(("note", note) for note in self.notes))
        lines.extend(_line(f"{gutter} = {label}: {about}") for label, about in more if about is not None)
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, for ``--format json``."""
        data = attrs.asdict(self, filter=lambda field, _: not field.name.startswith("excerpt"))
        return {**data, "path": dotted(self.path), "source": self.excerpt, "notes": list(self.notes)}


@attrs.frozen(kw_only=True)
class Fault:
    """One thing wrong at a path, whose place is found later; ``at`` says whether to point at the value, or at its key.

    A path that leads to something that is not there points at what lacks it.
    """

    path: Path = ()
    message: str
    at: Literal["value", "key"] = "value"
    found: str | None = None
    expected: str | None = None
    hint: str | None = None

    @classmethod
    def of(cls, error: Any, *path: str | int) -> Fault:
        """What a :class:`CarambaError` says of a value at a path, or an :class:`InvalidValue` of a field of it."""
        if getattr(error, "field", None) is not None:
            path = (*path, key_of(error.field), *error.within)
        return cls(path=path, message=error.message, expected=error.expected, hint=error.hint)

    def below(self, *parts: str | int) -> Fault:
        """The same fault, seen from a value that holds the faulty one under ``parts``."""
        return attrs.evolve(self, path=(*parts, *self.path))

    def __str__(self) -> str:
        more = (("expected", self.expected), ("hint", self.hint))
        lines = [f"  {label}: {text}" for label, text in more if text is not None]
        return "\n".join([f"{dotted(self.path)}: {self.message}", *lines])


def in_order(problems: Iterable[ManifestProblem], files: Iterable[str] = ()) -> list[ManifestProblem]:
    """Each place and message once, in the order of ``files``, then of the first problem of each file, then of lines."""
    once: dict[tuple[str, int | None, int | None, str], ManifestProblem] = {}
    for problem in problems:
        once.setdefault((problem.file, problem.line, problem.column, problem.message), problem)
    names = dict.fromkeys([*files, *(problem.file for problem in once.values())])
    order = {name: index for index, name in enumerate(names)}
    return sorted(once.values(), key=lambda p: (order[p.file], p.line or 0, p.column or 0))


def dotted(path: Path) -> str:
    """``groups.0.runs.1.train.lr``; a key that holds a dot is quoted, as ``--set`` takes it."""
    return ".".join(f'"{part}"' if isinstance(part, str) and ("." in part or not part) else str(part) for part in path)


def key_of(attribute: str) -> str:
    """A field's key in a manifest: ``from_`` is written ``from``."""
    bare = attribute.removesuffix("_")
    return bare if keyword.iskeyword(bare) else attribute


def shown(value: object) -> str:
    """What a value is, in a user's words: ``the string 'two'``, ``a list of 3 items``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return "an empty list" if not value else f"a list of {len(value)} item{'s' * (len(value) != 1)}"
    if isinstance(value, int):
        return f"the integer {value if abs(value) < 10**_QUOTED else f'of more than {_QUOTED} digits'}"
    if isinstance(value, float):
        return f"the number {value!r}"
    text = str(value)
    quoted = repr(text if len(text) <= _QUOTED else f"{text[: _QUOTED - 15]}...{text[-12:]}")
    return f"{'the string' if isinstance(value, str) else type(value).__name__} {quoted}"


def _line(text: str) -> str:
    """A line that no name in it can break, hide or stretch."""
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _cut(line: str, column: int, end: int) -> tuple[str, int, int]:
    """A printable piece of a source line around the mark: the text, the mark's offset in it, the mark's length."""
    start = min(column - 1, len(line))
    first, last = 0, len(line)
    if _width(_printable(line)) > _WIDEST:
        first = max(0, start - _WIDEST // 3)
        last = first + _WIDEST
    before = ("..." if first else "") + _printable(line[first:start])
    marked = _printable(line[start : max(start, min(end - 1, last))])
    after = _printable(line[max(start, end - 1) : last]) + ("..." if last < len(line) else "")
    return before + marked + after, _width(before), max(1, _width(marked))


def _printable(text: str) -> str:
    """Tabs as spaces, and nothing that would move a terminal's cursor."""
    text = text.replace("\t", "    ")
    return "".join(c if c.isprintable() or unicodedata.combining(c) else "\N{REPLACEMENT CHARACTER}" for c in text)


def _width(text: str) -> int:
    """Cells of a terminal: wide characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)
