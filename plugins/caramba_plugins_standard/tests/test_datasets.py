"""Token arrays and texts: what is read, and what is refused."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caramba_plugins_standard.datasets import TextFile, TokenArray
from hypothesis import given, settings
from hypothesis import strategies as st

from caramba_core.datasets import Tokens
from caramba_core.errors import InputError, InvalidValue
from caramba_core.run.overlap import share_found


class Letters:
    """A tokenizer of the letters a to z and the line break."""

    identity = "letters"
    vocab_size = 27
    end_of_text = None
    bos = None
    adds_bos = False
    stops: frozenset[int] = frozenset()

    def encode_batch(self, texts: Sequence[str], *, special_tokens: bool = False) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        return [26 if letter == "\n" else ord(letter) - ord("a") for letter in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join("\n" if token == 26 else chr(token + ord("a")) for token in tokens)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32", "int64", ">u2"])
def test_arrays_are_mapped_not_read(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", np.arange(100).astype(dtype))
    tokens = TokenArray(path="a.npy").open(tmp_path, None)
    assert isinstance(tokens.ids, np.memmap)
    assert tokens.ids.tolist() == list(range(100))
    assert tokens.tokenizer is None
    assert tokens.origin == str(tmp_path / "a.npy")


@settings(deadline=None)
@given(count=st.integers(1, 200), cuts=st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_parts_meet_and_do_not_overlap(tmp_path_factory: Any, count: int, cuts: list[float]) -> None:
    folder = tmp_path_factory.mktemp("parts")
    np.save(folder / "a.npy", np.arange(count))
    bounds = sorted({0.0, 1.0, *cuts})
    found: list[int] = []
    for first, last in itertools.pairwise(bounds):
        try:
            found += TokenArray(path="a.npy", part=(first, last)).open(folder, None).ids.tolist()
        except InputError as error:
            assert "holds no token" in str(error)
    assert found == list(range(count))


def test_a_part_is_named_in_messages(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(10))
    tokens = TokenArray(path="a.npy", part=(0.5, 0.75)).open(tmp_path, None)
    assert tokens.ids.tolist() == [5, 6]
    assert tokens.origin.endswith("a.npy [0.5, 0.75]")


def test_a_note_beside_the_array_is_read_and_checked(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(10))
    digest = hashlib.sha256((tmp_path / "a.npy").read_bytes()).hexdigest()
    note = {"tokenizer": "abc", "vocab_size": 10, "sha256": digest, "made": "today"}
    (tmp_path / "a.npy.json").write_text(json.dumps(note))
    assert TokenArray(path="a.npy").open(tmp_path, None).tokenizer == "abc"
    for change, words in (
        ({"vocab_size": 9}, "holds token id 9"),
        ({"sha256": "0" * 64}, "has SHA-256"),
        ({"vocab_size": "10"}, "vocab_size is '10'"),
        ({"tokenizer": 3}, "tokenizer is 3"),
        ({"vocab_size": True}, "vocab_size is True"),
    ):
        (tmp_path / "a.npy.json").write_text(json.dumps({**note, **change}))
        with pytest.raises(InputError, match=words):
            TokenArray(path="a.npy").open(tmp_path, None)
    for text in ("[]", "{", "\x00"):
        (tmp_path / "a.npy.json").write_text(text)
        with pytest.raises(InputError, match=r"a\.npy\.json"):
            TokenArray(path="a.npy").open(tmp_path, None)


def saved(array: Any) -> Callable[[Path], None]:
    return lambda path: np.save(path, array, allow_pickle=True)


def written(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None


def cut(path: Path) -> None:
    np.save(path, np.arange(1000))
    path.write_bytes(path.read_bytes()[:-100])


class _Trap:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "floats": (saved(np.arange(10.0)), "float64"),
    "half floats": (saved(np.arange(10.0).astype(np.float16)), "float16"),
    "booleans": (saved(np.ones(3, dtype=bool)), "bool"),
    "complex": (saved(np.ones(3, dtype=complex)), "complex"),
    "records": (saved(np.zeros(3, dtype=[("a", "i4")])), "integer token ids"),
    "texts": (saved(np.array(["a", "b"])), "integer token ids"),
    "two axes": (saved(np.zeros((3, 4), dtype=int)), r"\[3, 4\]"),
    "no axis": (saved(np.array(5)), "one axis"),
    "negative ids": (saved(np.array([3, -1, 4])), "negative token id -1"),
    "no tokens": (saved(np.zeros(0, dtype=int)), "is empty"),
    "objects": (saved(np.array([_Trap()], dtype=object)), "cannot be read"),
    "a pickle": (written(pickle.dumps(_Trap())), r"not a \.npy file"),
    "a bare magic": (written(b"\x93NUMPY"), "cannot be read"),
    "a header that is code": (
        written(b"\x93NUMPY\x01\x00\x20\x00__import__('os').getpid()       \n"),
        "cannot be read",
    ),
    "a lying header": (
        written(
            b"\x93NUMPY\x01\x00\x46\x00{'descr': '<i8', 'fortran_order': False, 'shape': (9223372036854775807,)} \n"
        ),
        "cannot be read",
    ),
    "an empty file": (written(b""), r"not a \.npy file"),
    "a web page": (written(b"<!DOCTYPE html><html>"), r"not a \.npy file"),
    "an archive": (lambda path: np.savez(path.open("wb"), a=np.arange(3)), r"not a \.npy file"),
    "a pointer": (written(b"version https://git-lfs.github.com/spec/v1\n"), r"not a \.npy file"),
    "cut off": (cut, "cannot be read"),
    "missing": (lambda path: None, "does not exist"),
    "an empty folder": (lambda path: path.mkdir(), r"holds no \.npy file"),
    "a pipe": (lambda path: os.mkfifo(path), "is not a file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_anything_else_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, words = BROKEN[name]
    make(tmp_path / "a.npy")
    with pytest.raises(InputError, match=words) as caught:
        TokenArray(path="a.npy").open(tmp_path, None)
    assert "a.npy" in str(caught.value)
    assert not (tmp_path / "executed").exists()


@settings(max_examples=200, deadline=None)
@given(
    damage=st.lists(st.tuples(st.integers(6, 130), st.integers(0, 255)), min_size=1, max_size=5),
    kept=st.integers(0, 528),
)
def test_a_damaged_header_is_an_input_error(tmp_path_factory: Any, damage: list[tuple[int, int]], kept: int) -> None:
    path = tmp_path_factory.mktemp("damage") / "a.npy"
    np.save(path, np.arange(50))
    data = bytearray(path.read_bytes())
    for place, value in damage:
        data[place] = value
    path.write_bytes(bytes(data[:kept]) if kept % 2 else bytes(data))
    with contextlib.suppress(InputError):
        assert TokenArray(path="a.npy").open(path.parent, None).ids.ndim == 1


@pytest.mark.parametrize("part", [(0.5, 0.5), (0.6, 0.5), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 1.0)])
def test_parts_that_are_none_are_refused(part: tuple[float, float]) -> None:
    for kind in (TokenArray, TextFile):
        with pytest.raises(InvalidValue) as caught:
            kind(path="a.npy", part=part)
        assert caught.value.field == "part"


def test_text_is_encoded(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfab\nz\n")
    tokens = TextFile(path="a.txt").open(tmp_path, Letters())
    assert tokens.ids.tolist() == [0, 1, 26, 25, 26]
    assert tokens.ids.dtype == np.uint16
    assert tokens.tokenizer == "letters"
    assert TextFile(path="a.txt").files() == (Path("a.txt"),)


@settings(deadline=None)
@given(text=st.text("ab\n", min_size=1, max_size=60), cuts=st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_parts_of_a_text_meet_at_line_breaks(tmp_path_factory: Any, text: str, cuts: list[float]) -> None:
    folder = tmp_path_factory.mktemp("parts")
    (folder / "a.txt").write_text(text, newline="")
    bounds = sorted({0.0, 1.0, *cuts})
    found = ""
    for first, last in itertools.pairwise(bounds):
        try:
            part = TextFile(path="a.txt", part=(first, last)).open(folder, Letters())
        except InputError as error:
            assert "holds no text" in str(error)
            continue
        assert not found or found.endswith("\n")
        found += Letters().decode(part.ids.tolist())
    assert found == text


def test_text_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    with pytest.raises(InputError, match="no tokenizer"):
        TextFile(path="a.txt").open(tmp_path, None)
    (tmp_path / "a.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8 at byte 3"):
        TextFile(path="a.txt").open(tmp_path, Letters())
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(InputError, match="holds no text"):
        TextFile(path="a.txt").open(tmp_path, Letters())
    with pytest.raises(InputError, match="does not exist"):
        TextFile(path="b.txt").open(tmp_path, Letters())


@pytest.mark.parametrize("change", ["shrink", "grow", "write", "remove"])
def test_an_array_that_changes_while_it_is_read(tmp_path: Path, change: str) -> None:
    """A part of a file that is gone would end the process; another content would go unseen."""
    path = tmp_path / "a.npy"
    np.save(path, np.arange(100_000))
    tokens = TokenArray(path="a.npy").open(tmp_path, None)
    assert tokens.read(99_990, 99_995).tolist() == list(range(99_990, 99_995))
    if change == "shrink":
        os.truncate(path, 4096)
    elif change == "remove":
        path.unlink()
    else:
        with path.open("r+b" if change == "write" else "ab") as file:
            file.write(b"other")
        os.utime(path, ns=(0, 1))
    other = Tokens(ids=np.arange(64), tokenizer=None, origin="others")
    for read in (lambda: tokens.read(99_990, 99_995), lambda: tokens.hash, lambda: share_found(tokens, other)):
        with pytest.raises(InputError, match=r"a.npy has changed while its tokens were read"):
            read()
