"""JSON text to a located tree (RFC 8259): no comments, no trailing commas, no NaN."""

from __future__ import annotations

import re
from json import JSONDecodeError, JSONDecoder
from typing import Final

from caramba_core.manifest.reading import Reading
from caramba_core.manifest.scalars import BadScalarError, resolve_scalar
from caramba_core.manifest.source import Broken, SourceText, TextSpan
from caramba_core.manifest.tree import MAX_DEPTH, Gap, MapItem, Node, Scalar, list_of, map_of

__all__ = ["read_json"]

_SPACE: Final = re.compile(r"[ \t\r\n]*")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_WORD: Final = re.compile(r"[A-Za-z0-9_.+-]+")
_STRINGS: Final = JSONDecoder()
_WORDS: Final[dict[str, bool | None]] = {"null": None, "true": True, "false": False}
_NO_VALUE: Final = re.compile("[\x00\ud800-\udfff]")


def read_json(source: SourceText, reading: Reading) -> Node:
    """The tree of a JSON text; as :func:`~caramba_core.manifest.yaml_text.read_yaml`."""
    reader = _Reader(source, reading)
    index = reader.space(0)
    if index == len(source.text):
        return Scalar(None, TextSpan(source, 0, 0))
    node, index = reader.value(index, 1)
    index = reader.space(index)
    if index < len(source.text):
        raise Broken(
            TextSpan(source, index, index + 1).problem("more text after the end of the value", expected="nothing")
        )
    return node


class _Reader:
    def __init__(self, source: SourceText, reading: Reading) -> None:
        self.source = source
        self.text = source.text
        self.problems = reading.problems
        self.budget = reading.written

    def space(self, index: int) -> int:
        match = _SPACE.match(self.text, index)
        assert match is not None
        return match.end()

    def value(self, index: int, depth: int) -> tuple[Node, int]:
        """The value that starts at ``index``, and where it ends."""
        character = self.text[index : index + 1]
        span = TextSpan(self.source, index, index + 1)
        self.budget.spend(1, span)
        if character in ("{", "["):
            if depth > MAX_DEPTH:
                raise Broken(span.problem(f"lists and mappings nest more than {MAX_DEPTH} deep here"))
            return self._mapping(index, depth) if character == "{" else self._list(index, depth)
        if character == '"':
            text, end = self._string(index)
            return self._checked(text, TextSpan(self.source, index, end)), end
        number = _NUMBER.match(self.text, index)
        word = _WORD.match(self.text, index)
        if number is not None and word is not None and number.end() == word.end():
            return self._number(TextSpan(self.source, index, number.end())), number.end()
        if word is not None and word.group() in _WORDS:
            return Scalar(_WORDS[word.group()], TextSpan(self.source, index, word.end())), word.end()
        end = word.end() if word is not None else index + 1
        what = repr(self.text[index:end]) if index < len(self.text) else "the end of the text"
        raise self._broken(
            index, end, f"{what} is not a JSON value", 'a value: "text", 1.5, true, false, null, [...] or {...}'
        )

    def _broken(self, index: int, end: int, message: str, expected: str) -> Broken:
        if index >= len(self.text):
            index = len(self.text.rstrip())
            end = index + 1
        return Broken(TextSpan(self.source, index, end).problem(message, expected=expected))

    def _number(self, span: TextSpan) -> Node:
        text = self.text[span.start : span.end]
        try:
            return Scalar(resolve_scalar(text), span)
        except BadScalarError as error:
            self.problems.append(
                span.problem(str(error), expected="an integer of at most 64 bits, or a number up to 1.8e308")
            )
            return Gap(span)

    def _string(self, index: int) -> tuple[str, int]:
        try:
            text, end = _STRINGS.raw_decode(self.text, index)
        except JSONDecodeError as error:
            at = index if error.msg.startswith("Unterminated") else error.pos
            raise self._broken(
                at, at + 1, f"this is not a JSON string: {error.msg}", "a string in double quotes"
            ) from None
        return str(text), end

    def _checked(self, text: str, span: TextSpan) -> Node:
        bad = _NO_VALUE.search(text)
        if bad is None:
            return Scalar(text, span)
        self.problems.append(span.problem(f"the character U+{ord(bad.group()):04X} cannot stand in a value"))
        return Gap(span)

    def _list(self, start: int, depth: int) -> tuple[Node, int]:
        items: list[Node] = []
        index = self.space(start + 1)
        while self.text[index : index + 1] != "]" or items:
            node, index = self.value(index, depth + 1)
            items.append(node)
            index, more = self._separator(index, start, "]")
            if not more:
                break
        else:
            index += 1
        return list_of(items, TextSpan(self.source, start, index)), index

    def _mapping(self, start: int, depth: int) -> tuple[Node, int]:
        entries: dict[str, MapItem] = {}
        index = self.space(start + 1)
        while self.text[index : index + 1] != "}" or entries:
            if self.text[index : index + 1] != '"':
                raise self._broken(index, index + 1, "a key must stand here", "a string in double quotes")
            key, end = self._string(index)
            key_span = TextSpan(self.source, index, end)
            index = self.space(end)
            if self.text[index : index + 1] != ":":
                raise self._broken(index, index + 1, "a ':' must follow the key", "':'")
            node, index = self.value(self.space(index + 1), depth + 1)
            if key in entries:
                first = entries[key].key
                self.problems.append(
                    key_span.problem(
                        f"the key {key!r} is given twice", hint="keep one", notes=(f"first given at {first.place}",)
                    )
                )
            else:
                self._checked(key, key_span)
                entries[key] = MapItem(key_span, node)
            index, more = self._separator(index, start, "}")
            if not more:
                break
        else:
            index += 1
        return map_of(entries, TextSpan(self.source, start, index)), index

    def _separator(self, index: int, opened: int, closing: str) -> tuple[int, bool]:
        """Behind the ``,`` that announces another item, or behind the closing bracket."""
        index = self.space(index)
        character = self.text[index : index + 1]
        if character == closing:
            return index + 1, False
        if character == ",":
            index = self.space(index + 1)
            if self.text[index : index + 1] == closing:
                raise self._broken(
                    index, index + 1, "a ',' stands before the closing bracket", "another value, or no ','"
                )
            return index, True
        if character == "":
            raise self._broken(
                opened, opened + 1, f"the {self.text[opened]} opened here is never closed", f"'{closing}'"
            )
        raise self._broken(index, index + 1, f"{character!r} cannot stand here", f"',' or '{closing}'")
