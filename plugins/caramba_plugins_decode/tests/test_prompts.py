"""Files of prompts: every line is a prompt or says what is wrong with it."""

from __future__ import annotations

import io

import pytest
from caramba_plugins_decode.prompts import Prompt, read_prompts


def test_lines() -> None:
    lines = b'"a"\n\n{"prompt": "b", "id": {"x": 1}, "max_new_tokens": 3, "label": 0}\n  \n\xef\xbb\xbf{"prompt": ""}'
    assert list(read_prompts(io.BytesIO(lines))) == [
        Prompt(line=1, text="a"),
        Prompt(line=3, text="b", id={"x": 1}, max_new_tokens=3),
        Prompt(line=5, text=""),
    ]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8 at byte 0"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "neither a string nor an object"),
        (b"{}", "there is no prompt"),
        (b'{"prompt": 3}', "the prompt is no text"),
        (b'{"prompt": "a", "max_new_token": 3}', "unknown key 'max_new_token', did you mean 'max_new_tokens'?"),
        (b'{"prompt": "a", "max_new_tokens": 0}', "max_new_tokens is 0, not a number of tokens from 1 on"),
        (b'{"prompt": "a", "max_new_tokens": true}', "max_new_tokens is true"),
        (b'{"prompt": "\\ud83d"}', "half of a surrogate pair at 0"),
    ],
)
def test_a_bad_line_spoils_no_other(line: bytes, error: str) -> None:
    first, bad, last = read_prompts(io.BytesIO(b'"a"\n' + line + b'\n"b"\n'))
    assert (first.text, last.text, bad.line) == ("a", "b", 2)
    assert bad.error is not None and error in bad.error


def test_the_id_of_a_bad_line_is_kept() -> None:
    (bad,) = read_prompts(io.BytesIO(b'{"id": 7, "prompt": null}'))
    assert (bad.id, bad.error) == (7, "the prompt is no text")
