"""Files that are no weights, or whose header lies: one clear error each, before anything is computed."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from pathlib import Path

import pytest
from caramba_plugins_llama.safetensors_file import read_header
from caramba_plugins_standard.loading import find_loader, open_source
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caramba_core.errors import InputError

from .damage import LFS, refused, safetensors_bytes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (LFS, "git-LFS pointer"),
        (b"<!DOCTYPE html><html>sign in</html>", "web page"),
        (b"hello, this is only a text", "not a checkpoint that an installed plugin can read"),
        (pickle.dumps({"a": 1}), "pickle"),
        (b"PK\x03\x04" + bytes(40), "pickle"),
    ],
    ids=["empty", "lfs", "html", "text", "pickle", "zip"],
)
@pytest.mark.parametrize("name", ["model.safetensors", "weights"])
def test_files_of_other_kinds(tmp_path: Path, content: bytes, message: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        find_loader(tmp_path / name)


def test_no_file_no_content_no_permission(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        find_loader(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="the folder is empty"):
        find_loader(tmp_path / "empty")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        find_loader(tmp_path / "pipe")
    with pytest.raises(InputError, match="names no file"):
        open_source("a\0b", tmp_path)


def test_hashes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has SHA-256 [0-9a-f]{64}\n  expected: 0000"):
        open_source("model/model.safetensors", tmp_path, sha256="0" * 64)
    with pytest.raises(InputError, match="is a folder, which has no SHA-256"):
        open_source("model", tmp_path, sha256="0" * 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (LFS, "it is a git-LFS pointer"),
        (pickle.dumps({"a": 1}), "not a sound safetensors file"),
        (b"<html></html>", "it is a web page"),
    ],
    ids=["empty", "lfs", "pickle", "html"],
)
def test_weights_of_other_kinds_inside_a_folder(folder: Path, content: bytes, message: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, message)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

LIES: dict[str, tuple[bytes, str]] = {
    "length zero": (safetensors_bytes({}, length=0), "claims a header of 0 bytes"),
    "length huge": (safetensors_bytes({}, length=2**63), f"claims a header of {2**63} bytes"),
    "length beyond": (safetensors_bytes({}, length=3), "claims a header of 3 bytes"),
    "not JSON": (safetensors_bytes(b"{'a': 1}"), "not JSON"),
    "not UTF-8": (safetensors_bytes(b'{"\xff": 1}'), "not JSON"),
    "deep": (safetensors_bytes(b'{"a":' + b"[" * 100_000), "nested too deeply"),
    "array": (safetensors_bytes([1, 2]), "no JSON object"),
    "duplicate": (safetensors_bytes(b'{"a":' + json.dumps(F32).encode() + b',"a":{}}', bytes(8)), "'a' stands twice"),
    "no dtype": (safetensors_bytes({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "not described by"),
    "unknown dtype": (
        safetensors_bytes({"a": {**F32, "dtype": "F9_E4M3"}}, bytes(8)),
        "has type 'F9_E4M3', which the format does not have",
    ),
    "negative shape": (safetensors_bytes({"a": {**F32, "shape": [-2]}}, bytes(8)), "has shape"),
    "true shape": (safetensors_bytes({"a": {**F32, "shape": [True, 2]}}, bytes(8)), "has shape"),
    "overflow": (safetensors_bytes({"a": {**F32, "shape": [2**62, 2**62]}}, bytes(8)), "has 8 bytes instead of"),
    "shape lies": (safetensors_bytes({"a": {**F32, "shape": [3]}}, bytes(8)), "has 8 bytes instead of 12"),
    "reversed": (safetensors_bytes({"a": {**F32, "data_offsets": [8, 0]}}, bytes(8)), "has -8 bytes"),
    "overlap": (
        safetensors_bytes({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, bytes(12)),
        "'b' starts at byte .* inside the one before",
    ),
    "hole": (
        safetensors_bytes({"a": F32, "b": {**F32, "data_offsets": [12, 20]}}, bytes(20)),
        "and the one before ends",
    ),
    "cut off": (safetensors_bytes({"a": F32}, bytes(7)), "cut off"),
    "too long": (safetensors_bytes({"a": F32}, bytes(9)), "its tensors end at byte"),
}


@pytest.mark.parametrize("name", LIES)
def test_headers_that_lie(folder: Path, name: str) -> None:
    content, message = LIES[name]
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, message)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_goes_unnoticed_or_fails_otherwise(tmp_path: Path, data: st.DataObject) -> None:
    """Any change of a header is either refused, or leaves a header that describes the file."""
    entries = {"a": F32, "bb": {"dtype": "BF16", "shape": [3, 1], "data_offsets": [8, 14]}}
    content = bytearray(safetensors_bytes(entries, bytes(14)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.safetensors"
    path.write_bytes(
        bytes(content[: data.draw(st.integers(0, len(content)))]) if data.draw(st.booleans()) else bytes(content)
    )
    with contextlib.suppress(InputError):
        assert sum(entry.last - entry.first for entry in read_header(path)) <= path.stat().st_size
