"""YAML syntax errors in a user's words, at the place that helps."""

from __future__ import annotations

from typing import Final

from ruamel.yaml.error import MarkedYAMLError

from caramba_core.manifest.problem import ManifestProblem
from caramba_core.manifest.source import SourceText, TextSpan

__all__ = ["explain"]

_OPENED: Final = {"while parsing a flow sequence": "[", "while parsing a flow mapping": "{"}
_CLOSING: Final = {"[": "]", "{": "}"}


def explain(error: MarkedYAMLError, source: SourceText) -> ManifestProblem:
    """The problem that a parser's error stands for."""
    problem = str(error.problem or "").strip()
    context = str(error.context or "").strip()
    at = _index(error.problem_mark, source)
    opened = _index(error.context_mark, source) if error.context_mark is not None else at
    here, there = _mark(source, at), _mark(source, opened)
    text = source.text

    if text[at - 1 : at + 1] == "${" or text[at : at + 2] == "${":
        start = at - 1 if text[at] == "{" else at
        end = text.find("}", start) + 1 or start + 2
        quoted = f'"{text[start:end]}"'
        return TextSpan(source, start, end).problem("${...} must be quoted here", hint=f"write {quoted}")
    if text[at : at + 1] == "\t" or "\\t" in problem:
        return here.problem("a tab cannot indent or separate here", hint="use spaces")
    if context in _OPENED:
        bracket = _OPENED[context]
        if "<stream end>" in problem or "<document" in problem or _is_outside(source, at, opened):
            return there.problem(f"the {bracket} opened here is never closed")
        return here.problem(
            f"a ',' or '{_CLOSING[bracket]}' is missing in front of this",
            notes=(f"the {bracket} was opened at {there.place}",),
        )
    if "quoted scalar" in context and "end of stream" in problem:
        return there.problem("the quote opened here is never closed")
    if "mapping values are not allowed" in problem:
        return here.problem(
            "a second ':' is not allowed here",
            hint="quote a text that holds ': ', or put the inner mapping on lines of its own",
        )
    if "could not find expected ':'" in problem:
        return there.problem("this is no `key: value`", expected="a ':' and a space behind the key")
    if context == "while parsing a block mapping" or context == "while parsing a block collection":
        return here.problem(
            "this does not fit the lines above it",
            expected="the same indentation as its siblings, and `- ` before items of a list",
            notes=(f"the {'list' if 'collection' in context else 'mapping'} begins at {there.place}",),
        )
    if "cannot start any token" in problem:
        return here.problem(f"no value can start with {text[at : at + 1]!r}", hint="quote it")
    if "undefined tag handle" in problem or "tag" in context:
        return there.problem("tags are not allowed", hint="components are named by type:")
    return here.problem(_sentence(problem or context))


def _is_outside(source: SourceText, at: int, opened: int) -> bool:
    """Whether a place looks as if the bracket before it were closed: it starts a line that is indented no further."""
    line, column = source.place(at)
    before, _ = source.place(opened)
    text = source.line(before)
    starts_line = not source.line(line)[: column - 1].strip()
    return line > before and starts_line and column - 1 <= len(text) - len(text.lstrip(" "))


def _sentence(problem: str) -> str:
    return f"this is not YAML: {problem}"


def _index(mark: object, source: SourceText) -> int:
    index = getattr(mark, "index", 0)
    return max(0, min(int(index), len(source.text)))


def _mark(source: SourceText, index: int) -> TextSpan:
    """One character; the end of the text points behind the last line that says something."""
    if index >= len(source.text):
        index = len(source.text.rstrip())
    return TextSpan(source, index, index + 1)
