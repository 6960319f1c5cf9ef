"""From bytes to a tree: what YAML 1.2 and JSON mean, and files that are none."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from caramba_document.reading import Reading
from caramba_document.source import MAX_BYTES, SourceText
from caramba_document.texts import read_text
from caramba_document.tree import plain
from caramba_document.writing import dump
from hypothesis import given
from hypothesis import strategies as st

from caramba_core.errors import ManifestError
from caramba_core.manifest.load import load_manifest

from .workspace import SMALL, Workspace


def yaml(text: str) -> Any:
    reading = Reading()
    data = plain(read_text(SourceText(name="m.yml", text=text), reading))
    assert not reading.problems
    return data


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("no", "no"), ("on", "on"), ("Yes", "Yes"), ("y", "y"), ("true", True), ("False", False), ("tRue", "tRue"),
        ("null", None), ("~", None), ("", None), ("Null", None), ("nULL", "nULL"),
        ("010", 10), ("0o17", 15), ("0x1F", 31), ("+7", 7), ("-0", 0), ("0b11", "0b11"),
        ("1_000", "1_000"), ("1,5", "1,5"),
        ("1e-4", 1e-4), ("5.", 5.0), (".5", 0.5), ("1.0E+3", 1000.0), ("1e", "1e"), (".", "."),
        ("-", "-"), ("1e3", 1000.0),
        ("2024-01-01", "2024-01-01"), ("12:30", "12:30"), ("=", "="), (".inf", float("inf")), ("-.Inf", float("-inf")),
        ("inf", "inf"), ("nan", "nan"), ("9223372036854775807", 2**63 - 1), ("'5'", "5"), ('"\\u00e9"', "é"),
        ("!!str 5", "5"),
        ("! 5", "5"), ("!!int 5", 5), ("!!float 5.0", 5.0), ("|\n  a\n  b\n", "a\nb\n"), (">\n  a\n  b\n", "a b\n"),
    ],
)  # fmt: skip
def test_what_a_word_means(word: str, value: object) -> None:
    found = yaml(f"- {word}\n" if word != "-" else '- "-"')
    assert found == [value]
    assert type(found[0]) is type(value)


def test_merge_keys() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: [*a, *b], x: 0}\nd: {y: 9, <<: *a}\n'<<': plain\n"
    data = yaml(text)
    assert data["c"] == {"y": 2, "z": 4, "x": 0}
    assert data["d"] == {"x": 1, "y": 9}
    assert data["<<"] == "plain"


def test_what_ends_lines_in_yaml_1_1_is_written_escaped() -> None:
    data = {"a": " x \x85 y \u2028 z \u2029 ", "b\u2028": ["\ufeff \U0001f600"]}
    assert yaml(dump(data)) == data


def test_an_anchor_may_be_given_again() -> None:
    assert yaml("- &a 1\n- *a\n- &a 2\n- *a\n") == [1, 1, 2, 2]


def test_yaml_1_2_may_say_so() -> None:
    assert yaml("# about\n%YAML 1.2\n---\na: 1\n") == {"a": 1}
    assert yaml("# 100 %\na: 1\n...\n") == {"a": 1}


@given(
    st.recursive(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(-(2**63) + 1, 2**63 - 1),
            st.floats(allow_nan=False, allow_infinity=False),
            st.text(),
        ),
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
        max_leaves=12,
    )
)
def test_json_is_read_as_json_does(data: Any) -> None:
    if "\0" in (text := json.dumps(data, indent=2)) or "\\u0000" in text or "\\ud" in text:
        return
    reading = Reading()
    assert plain(read_text(SourceText(name="m.json", text=text, file=Path("m.json")), reading)) == data
    assert not reading.problems


@given(
    st.dictionaries(
        st.text(min_size=1),
        st.recursive(
            st.one_of(
                st.none(), st.booleans(), st.integers(-(2**63) + 1, 2**63 - 1), st.floats(allow_nan=False), st.text()
            ),
            lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
            max_leaves=12,
        ),
    )
)
def test_what_is_written_reads_the_same(data: dict[str, Any]) -> None:
    text = dump(data)
    if any(not (c.isprintable() or c == "\n") for c in text) or "\\u0000" in text or "\\ud" in text:
        return
    assert (yaml(text) or {}) == data


YAML_ERRORS = {
    "x: &a.b 1\ny: *a.b\n": (1, 4, "this is no name of an anchor"),
    "x: &größe 1\n": (1, 4, "this is no name of an anchor"),
    "x: &a:b 1\n": (1, 4, "this is no name of an anchor"),
    "x: !!str &a:b\n": (1, 4, "this is no name of an anchor"),
    "x: *.txt\n": (1, 4, "this is no name of an anchor"),
    "a: 1\n\ufeffb: 2\n": (2, 1, "a byte order mark stands here"),
    "a:\n  b: 1\r\ufeff c: 2\n": (3, 1, "a byte order mark stands here"),
    "a: |\n  \tb\n": (2, 3, "a tab cannot indent or separate here"),
    "a:\n\tb: 1\n": (2, 1, "a tab cannot indent or separate here"),
    "a: 1\n...\nb: 2\n": (3, 1, "a second document starts here"),
    "a: 1\n---\nb: 2\n": (2, 1, "a second document starts here"),
    "  a: 1\nb: 2\n": (2, 1, "this does not fit the lines above it"),
    "a: - b\n": (1, 4, "a list cannot begin in this line"),
    "a: [1,,2]\n": (1, 7, "a value is missing in front of this"),
    "a: ]\n": (1, 4, "a value is missing in front of this"),
    "a: [b,\n": (1, 7, "the text ends where a value should stand, or a bracket be closed"),
    "a: [b\n": (1, 4, "the [ opened here is never closed"),
    "a: {b:}\n": (1, 6, "a space must follow this ':'"),
    '"a":1\n': (1, 4, "a space must follow this ':'"),
    "a: >50\n": (1, 6, "the line must end behind the '>', a text's beginning"),
    'a: "C:\\Users"\n': (1, 7, "\\U is no character here"),
    'a: "\\q"\n': (1, 5, "\\q is no character here"),
    'a: "\\ud83d\\uDE00"\n': (1, 5, "the character U+D83D cannot stand in a value"),
    "a: 1\n%b: 2\n": (2, 1, "a line cannot start with '%'"),
    "a: %b\n": (1, 4, "no value can start with '%'"),
    "name: !!python/object:os.system {}\n": (1, 33, "the tag !!python/object:os.system is not allowed"),
    "name: !!binary aGk=\n": (1, 16, "the tag !!binary is not allowed"),
}


@pytest.mark.parametrize("text", YAML_ERRORS)
def test_what_yaml_refuses(text: str, workspace: Workspace) -> None:
    with pytest.raises(ManifestError) as caught:
        workspace.load(text)
    problem = max(caught.value.problems, key=lambda problem: problem.column or 0)
    assert (problem.line, problem.column, problem.message) == YAML_ERRORS[text]


def test_a_pair_of_escapes_as_json_writes_it_has_one_in_yaml(workspace: Workspace) -> None:
    with pytest.raises(ManifestError, match=re.escape(r'write "\U0001F600"')):
        workspace.load('a: "\\ud83d\\uDE00"\n')
    assert yaml('a: "\\U0001F600"') == {"a": "\U0001f600"}


def test_what_tabs_may_do() -> None:
    assert yaml("a:\tb\t# c\nd: |2\n  \te\n") == {"a": "b", "d": "\te\n"}


JSON_ERRORS = {
    "[1,]": (4, "a ',' stands before the closing bracket"),
    '{"a": 1,}': (9, "a ',' stands before the closing bracket"),
    "[1": (1, "the [ opened here is never closed"),
    '{"a": [1, {': (11, "the { opened here is never closed"),
    '{"a" 1}': (6, "this is not JSON: expecting ':' delimiter"),
    "{a: 1}": (2, "this is not JSON: expecting property name enclosed in double quotes"),
    "{} x": (4, "more text after the end of the value"),
    "[01]": (2, "'01' is not a JSON value"),
    "[1. ]": (2, "'1.' is not a JSON value"),
    "[0x1F]": (2, "'0x1F' is not a JSON value"),
    "[+1]": (2, "'+1' is not a JSON value"),
    "[-Infinity]": (2, "'-Infinity' is not a JSON value"),
    "[1 2]": (4, "this is not JSON: expecting ',' delimiter"),
    "[1}": (3, "this is not JSON: expecting ',' delimiter"),
    '["a': (2, "this is not a JSON string: Unterminated string starting at"),
    '["a\tb"]': (4, "this is not a JSON string: Invalid control character at"),
    '["\\q"]': (3, "this is not a JSON string: Invalid \\escape"),
    '{"a": 1, "a": 2}': (10, "the key 'a' is given twice"),
    '["\\ud800"]': (2, "the character U+D800 cannot stand in a value"),
}


@pytest.mark.parametrize("text", JSON_ERRORS)
def test_what_json_refuses(text: str, workspace: Workspace) -> None:
    with pytest.raises(ManifestError) as caught:
        workspace.load(text, name="m.json")
    found = next(problem for problem in caught.value.problems if problem.column == JSON_ERRORS[text][0])
    assert found.message == JSON_ERRORS[text][1]


def test_json_that_yaml_would_read_otherwise(workspace: Workspace) -> None:
    text = '{"\\ud83d\\ude00\\/"\n: "a\u2028b", "<<": "no",\t"' + "k" * 2000 + '": {"~": "null"}}'
    reading = Reading()
    data = plain(read_text(SourceText(name="m.json", text=text, file=Path("m.json")), reading))
    assert data == {"\U0001f600/": "a\u2028b", "<<": "no", "k" * 2000: {"~": "null"}}
    assert not reading.problems


def test_json_has_places_too(workspace: Workspace) -> None:
    data = json.dumps(workspace.load(SMALL).document, indent="\t")
    spoilt = data.replace('"n_heads": 4', '"n_heads": "four"')
    (problem,) = workspace.report(spoilt, name="m.json")
    line = next(i for i, text in enumerate(spoilt.split("\n"), start=1) if "four" in text)
    assert problem.startswith(f"{line}:{spoilt.split(chr(10))[line - 1].index('four')} ")


# ------------------------------------------------------------------------------------------------ files


def message(file: Path) -> str:
    started = time.monotonic()
    with pytest.raises(ManifestError) as caught:
        load_manifest(file)
    assert time.monotonic() - started < 5  # it comes back at all: a FIFO would wait for ever
    (problem,) = caught.value.problems
    assert problem.file == str(file)
    assert problem.line is None
    return problem.message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert message(tmp_path / "m.yml") == "there is no such file"


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "m.yml").mkdir()
    assert message(tmp_path / "m.yml") == "this is a folder"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.yml")
    assert message(tmp_path / "m.yml") == "this is not a regular file"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "m.yml").write_text(SMALL)
    (tmp_path / "m.yml").chmod(0)
    assert message(tmp_path / "m.yml") == "this file may not be read"


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.yml").write_text(SMALL)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert message(tmp_path / "m.yml") == "this file may not be read"


def test_a_file_of_10_mb(tmp_path: Path) -> None:
    (tmp_path / "m.yml").write_bytes(b"a: 1\n" * 2_000_000)
    assert message(tmp_path / "m.yml") == "this file is too large for a manifest: 9.5 MiB"


def test_a_file_of_just_the_size(tmp_path: Path) -> None:
    (tmp_path / "m.yml").write_text(f"version: 1\nname: {'x' * (MAX_BYTES - 20)}\n")
    with pytest.raises(ManifestError, match="not of the right form"):
        load_manifest(tmp_path / "m.yml")


def test_a_name_with_another_suffix(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text(SMALL)
    assert message(tmp_path / "m.txt") == "this is not a manifest's file name"


def test_a_name_with_a_nul(tmp_path: Path) -> None:
    assert message(tmp_path / "a\0b.yml").startswith("this file cannot be read")


def test_byte_order_mark_and_line_ends(workspace: Workspace) -> None:
    for end in ("\r\n", "\r"):
        (workspace.folder / "m.yml").write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", end).encode())
        assert load_manifest(workspace.folder / "m.yml").manifest.name == "small"
    assert workspace.report(SMALL.replace("n_heads: 4", "n_heads: x").replace("\n", "\r")) == [
        "16:38 model.topology.layers.0.layers.0.layers.1.n_heads: expected an integer, found the string 'x'"
    ]
