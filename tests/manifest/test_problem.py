"""How a problem looks."""

from __future__ import annotations

import pytest
from caramba_document.problem import ManifestProblem, dotted, shown
from caramba_document.source import SourceText, TextSpan


def render(text: str, start: int, end: int, message: str = "wrong") -> list[str]:
    return TextSpan(SourceText(name="m.yml", text=text), start, end).problem(message).render().split("\n")


def test_a_mark_under_the_value() -> None:
    assert render("a: 1\nb: two\n", 8, 11) == ["m.yml:2:4: error: wrong", "    2 | b: two", "      |    ^^^"]


def test_tabs_are_spaced_out() -> None:
    assert render("\ta:\tx", 4, 5) == ["m.yml:1:5: error: wrong", "    1 |     a:    x", "      |           ^"]


def test_wide_and_combining_characters() -> None:
    assert render("日本: e\u0301x", 6, 7)[1:] == ["    1 | 日本: e\u0301x", "      |       " + " " + "^"]


def test_what_a_terminal_would_obey_is_not_shown() -> None:
    lines = render("a\x1b[31mb\u202ec: x", 10, 11, "the key 'a\x1b[31m'")
    assert "\x1b" not in "".join(lines) and "\u202e" not in "".join(lines)


def test_a_mark_of_several_lines_ends_with_the_first() -> None:
    assert render("a: [1,\n  2]\n", 3, 11)[1:] == ["    1 | a: [1,", "      |    ^^^"]


def test_a_mark_at_the_end_of_a_line() -> None:
    assert render("a:\nb", 2, 3)[1:] == ["    1 | a:", "      |   ^"]


@pytest.mark.parametrize("at", [0, 5, 300, 5000, 9990])
def test_long_lines_are_cut_around_the_mark(at: int) -> None:
    text = "".join(chr(97 + index % 26) for index in range(10_000))
    _, line, mark = render(text, at, at + 3)
    assert len(line) < 140
    assert mark.count("^") == 3
    column = mark.index("^")
    assert line[column : column + 3] == text[at : at + 3]


def test_a_long_place_does_not_push_the_message_out() -> None:
    place = TextSpan.nowhere("--set " + "a." * 1000 + "b=1")
    (line,) = place.problem("wrong " * 1000).render().split("\n")
    assert "...: error: wrong wrong" in line
    assert len(line) < 1300


def test_expectation_hint_and_notes_follow() -> None:
    problem = ManifestProblem(
        file="m.yml", line=1, column=1, path=("a", 0), message="bad", expected="good", hint="try", notes=("one", "two")
    )
    assert problem.render() == (
        "m.yml:1:1: error: a.0: bad\n      = expected: good\n      = hint: try\n      = note: one\n      = note: two"
    )
    assert problem.to_dict()["path"] == "a.0"


def test_an_expectation_that_the_message_holds_is_not_repeated() -> None:
    assert (
        "= expected"
        not in ManifestProblem(file="f", message="expected an integer, found null", expected="an integer").render()
    )


def test_paths_read_as_set_takes_them() -> None:
    assert dotted(("groups", 0, "attention.window", "")) == 'groups.0."attention.window".""'


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (True, "true"),
        (3, "the integer 3"),
        (10**100, "the integer of more than 60 digits"),
        (2.5, "the number 2.5"),
        ("a", "the string 'a'"),
        ("x" * 100, "the string 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxx'"),
        ([], "an empty list"),
        ([1], "a list of 1 item"),
        ({}, "an empty mapping"),
        ({"a": 1}, "a mapping"),
    ],
)
def test_values_in_words(value: object, words: str) -> None:
    assert shown(value) == words
