"""Syntax errors of YAML and JSON in a user's words, at the place that helps."""

from __future__ import annotations

import re
from string import ascii_letters, digits
from typing import Final

from yaml.error import MarkedYAMLError

from caramba_document.source import Broken, SourceText, TextSpan

__all__ = ["explain_json", "explain_yaml"]

_OPENED: Final = {"while parsing a flow sequence": "[", "while parsing a flow mapping": "{"}
_CLOSING: Final = {"[": "]", "{": "}"}
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
        return here.broken("a tab cannot indent or separate here", hint="use spaces")
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
        return TextSpan(source, at - 2, end).broken(f"the character U+{text[at:end].upper()} cannot stand in a value")
    if "expected key" in problem and text[at : at + 1] == ":":
        return here.broken("there is no key in front of this ':'")
    if "mapping values are not allowed" in problem:
        return here.broken(
            "a second ':' is not allowed here",
            hint="quote a text that holds ': ', or put the inner mapping on lines of its own",
        )
    if "could not find expected ':'" in problem:
        return there.broken("this is no `key: value`", expected="a ':' and a space behind the key")
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
