"""Syntax errors of YAML and JSON in a user's words, at the place that helps."""

from __future__ import annotations

import re
from string import ascii_letters, digits
from typing import Final

from yaml.error import MarkedYAMLError

from caramba_document.source import Broken, SourceText, TextSpan

__all__ = ["explain_anchor", "explain_json", "explain_yaml"]

_OPENED: Final = {"while parsing a flow sequence": "[", "while parsing a flow mapping": "{"}
_CLOSING: Final = {"[": "]", "{": "}"}
_PAIR: Final = re.compile(r"\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})", re.IGNORECASE)
"""How JSON escapes a character beyond 16 bits."""

_NO_DOCUMENT: Final = "expected <document start>"
_DOCUMENT_END: Final = re.compile(r"^\.\.\.\s", re.MULTILINE)
_JSON_TOKEN: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|.', re.DOTALL)
_JSON_WORD: Final = f"{ascii_letters}{digits}_.+-"


def explain_yaml(error: MarkedYAMLError, source: SourceText) -> Broken:
    """What a parser's error stands for."""
    problem = str(error.problem or "").strip()
    context = str(error.context or "").strip()
    marks = error.problem_mark or error.context_mark, error.context_mark or error.problem_mark
    at, opened = (min(mark.index, len(source.text)) if mark else 0 for mark in marks)
    here, there = _mark(source, at), _mark(source, opened)
    text = source.text

    if text[at - 1 : at + 1] == "${" or text[at : at + 2] == "${":
        start = at - 1 if text[at] == "{" else at
        end = text.find("}", start) + 1 or start + 2
        return TextSpan(source, start, end).broken("${...} must be quoted here", hint=f'write "{text[start:end]}"')
    if text[at : at + 1] == "\t" or "tab character" in problem:
        begins = "; before a text that begins with a tab, say how many: |2" if "block scalar" in context else ""
        return here.broken("a tab cannot indent or separate here", hint=f"use spaces{begins}")
    if context in _OPENED:
        bracket = _OPENED[context]
        if not text[at:].strip() or _is_outside(source, at, opened):
            return there.broken(f"the {bracket} opened here is never closed")
        return here.broken(
            f"a ',' or '{_CLOSING[bracket]}' is missing in front of this",
            notes=(f"the {bracket} was opened at {there.place}",),
        )
    if "quoted scalar" in context and "end of stream" in problem:
        return there.broken("the quote opened here is never closed")
    if "Unicode character escape" in problem:
        end = at + {"x": 2, "u": 4, "U": 8}[text[at - 1]]
        pair = _PAIR.match(text, at - 2)
        hint = f'write "\\U{ord(bytes.fromhex(pair[1] + pair[2]).decode("utf-16-be")):08X}"' if pair else None
        message = f"the character U+{text[at:end].upper()} cannot stand in a value"
        return TextSpan(source, at - 2, end).broken(message, hint=hint)
    if "quoted scalar" in context and ("escape" in problem or "hexdecimal" in problem):
        escape = TextSpan(source, at, at + 2) if text[at] == "\\" else TextSpan(source, at - 2, at)
        hint = "write \\\\ for a backslash, or put the text in single quotes"
        return escape.broken(f"{text[escape.start : escape.end]} is no character here", hint=hint)
    if "alphabetic or numeric" in problem and "directive" not in context:
        return explain_anchor(TextSpan(source, opened, opened + len(text[opened:].split(maxsplit=1)[0])))
    if text[at : at + 1] == ":" and "expected key" in problem:
        return here.broken("there is no key in front of this ':'")
    if (
        text[at : at + 1] == ":"
        and text[at - 1 : at].strip()
        and ("plain scalar" in context or _NO_DOCUMENT in problem)
    ):
        return here.broken("a space must follow this ':'", hint="quote a text that holds it")
    if "expected node content" in problem and at < len(text):
        return here.broken("a value is missing in front of this")
    if "expected node content" in problem:
        return here.broken("the text ends where a value should stand, or a bracket be closed")
    if "block sequence entries" in problem:
        return here.broken("a list cannot begin in this line", hint="write [a, b], or each `- ` on a line of its own")
    if "block scalar" in context:
        sign = text[opened]
        return here.broken(
            f"the line must end behind the '{sign}', a text's beginning", hint=f"quote what holds '{sign}'"
        )
    if "directive" in context:
        return there.broken("a line cannot start with '%'", hint="quote it")
    if "mapping values are not allowed" in problem:
        return here.broken(
            "a second ':' is not allowed here",
            hint="quote a text that holds ': ', or put the inner mapping on lines of its own",
        )
    if "could not find expected ':'" in problem:
        return there.broken("this is no `key: value`", expected="a ':' and a space behind the key")
    if _NO_DOCUMENT in problem and _DOCUMENT_END.search(text, 0, at):
        return here.broken("a second document starts here", expected="one document")
    if _NO_DOCUMENT in problem:
        return here.broken("this does not fit the lines above it", expected="one mapping, every key equally indented")
    if context in ("while parsing a block mapping", "while parsing a block collection"):
        return here.broken(
            "this does not fit the lines above it",
            expected="the same indentation as its siblings, and `- ` before items of a list",
            notes=(f"the {'list' if 'collection' in context else 'mapping'} begins at {there.place}",),
        )
    if "cannot start any token" in problem:
        return here.broken(f"no value can start with {text[at : at + 1]!r}", hint="quote it")
    if "undefined tag handle" in problem or "tag" in context:
        return there.broken("tags are not allowed", hint="components are named by type:")
    return here.broken(f"this is not YAML: {problem or context}")


def explain_anchor(name: TextSpan) -> Broken:
    """A name behind ``&`` or ``*`` that libyaml does not take, or a text that starts so."""
    expected = "A to Z, a to z, 0 to 9, - and _"
    return name.broken("this is no name of an anchor", expected=expected, hint="quote a text that starts with & or *")


def _is_outside(source: SourceText, at: int, opened: int) -> bool:
    """Whether a place looks as if the bracket before it were closed: it starts a line that is indented no further."""
    line, column = source.place(at)
    before, _ = source.place(opened)
    text = source.line(before)
    starts_line = not source.line(line)[: column - 1].strip()
    return line > before and starts_line and column - 1 <= len(text) - len(text.lstrip(" "))


def _mark(source: SourceText, index: int) -> TextSpan:
    """One character; the end of the text points behind the last line that says something."""
    if index >= len(source.text):
        index = len(source.text.rstrip())
    return TextSpan(source, index, index + 1)


def explain_json(source: SourceText, at: int, reason: str) -> Broken:
    """What an error of Python's decoder stands for: its message, and the offset where it stopped."""
    text = source.text
    here = _mark(source, at)
    if reason.startswith(("Unterminated", "Invalid")):
        return here.broken(f"this is not a JSON string: {reason}", expected="a string in double quotes")
    opened: list[int] = []
    for token in _JSON_TOKEN.finditer(text, 0, at):
        if token[0] in ("{", "["):
            opened.append(token.start())
        elif token[0] in ("}", "]"):
            opened.pop()
    rest = text[at:].lstrip(", \t\r\n")
    if opened and not rest:
        bracket = text[opened[-1]]
        message, expected = f"the {bracket} opened here is never closed", f"'{_CLOSING[bracket]}'"
        return _mark(source, opened[-1]).broken(message, expected=expected)
    if rest[:1] in ("}", "]") and "," in (text[at], text[:at].rstrip()[-1:]):
        message = "a ',' stands before the closing bracket"
        return _mark(source, len(text) - len(rest)).broken(message, expected="another value, or no ','")
    start, end = len(text[:at].rstrip(_JSON_WORD)), len(text) - len(text[at:].lstrip(_JSON_WORD))
    if reason == "Expecting value" or start < at < end:
        end = max(end, at + 1)
        expected = 'a value: "text", 1.5, true, false, null, [...] or {...}'
        return TextSpan(source, start, end).broken(f"{text[start:end]!r} is not a JSON value", expected=expected)
    if reason == "Extra data":
        return here.broken("more text after the end of the value", expected="nothing")
    return here.broken(f"this is not JSON: {reason[:1].lower()}{reason[1:]}")
