"""What a run says whose teacher is damaged or hostile: one report, exit code 2, nothing written."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from .damage import LFS, edit_config, edit_weights, safetensors_bytes
from .measuring import measure, refused
from .test_bad_files import F32
from .test_bad_tensors import edit_index
from .test_pickles import Command


def weights(content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(content)

    return damage


def changed(name: str, tensor: torch.Tensor | float | None) -> Callable[[Path], None]:
    """With another tensor under this name, with none, or filled with a number."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor if isinstance(tensor, torch.Tensor) else torch.full_like(tensors[name], tensor)

    return lambda folder: edit_weights(folder, change)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Command(folder.parent / "ran")))


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def linked_out(folder: Path) -> None:
    (folder.parent / "secret").write_text("{}")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder.parent / "secret")


FIRST = "model.layers.0.self_attn.q_proj.weight"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty file": (weights(b""), "the file is empty"),
    "git-LFS pointer": (weights(LFS), "git-LFS pointer"),
    "HTML page": (weights(b"<!DOCTYPE html><html></html>"), "it is a web page"),
    "truncated": (cut_off, "cut off"),
    "header of no length": (weights(safetensors_bytes({}, length=0)), "not a sound safetensors file"),
    "header of 2^63 bytes": (weights(safetensors_bytes({}, length=2**63)), "not a sound safetensors file"),
    "duplicate keys": (weights(safetensors_bytes(b'{"a":' + json.dumps(F32).encode() + b',"a":{}}')), "stands twice"),
    "overlapping": (
        weights(safetensors_bytes({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, bytes(12))),
        "inside the one before",
    ),
    "overflowing shape": (weights(safetensors_bytes({"a": {**F32, "shape": [2**62, 4]}}, bytes(8))), "has 8 bytes"),
    "unknown dtype": (weights(safetensors_bytes({"a": {**F32, "dtype": "F8"}}, bytes(8))), "has type 'F8'"),
    "missing tensor": (changed(FIRST, None), "q_proj"),
    "extra tensor": (changed("model.layers.0.self_attn.extra", torch.zeros(3)), "model.layers.0.self_attn.extra"),
    "misshapen tensor": (changed(FIRST, torch.zeros(5, 5)), "[5, 5]"),
    "whole numbers": (changed(FIRST, torch.zeros(48, 48, dtype=torch.int32)), "int32"),
    "NaN": (changed(FIRST, float("nan")), FIRST),
    "infinite": (changed(FIRST, float("inf")), FIRST),
    "pickle renamed": (pickled, "not a sound safetensors file"),
    "link that leads out": (linked_out, "link that leads out"),
    "no config.json": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "config of a picture model": (lambda folder: edit_config(folder, model_type="resnet"), "not of the Llama family"),
    "config of other sizes": (
        lambda folder: edit_config(folder, num_hidden_layers=4),
        "model.blocks.3.attention.q_proj",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_teachers(folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, words = DAMAGE[name]
    damage(folder)
    refused(tmp_path, "{source: model}", words, capsys)


def test_a_sound_one_runs(folder: Path, tmp_path: Path) -> None:
    assert measure(tmp_path, "{source: model}") == 0
    assert (tmp_path / "runs" / "measured" / "g" / "measure" / "summary.json").is_file()


@pytest.mark.parametrize("file", ["../../etc/passwd", "/etc/passwd"])
def test_shards_elsewhere(sharded: Path, tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    edit_index(sharded, lambda index: index["weight_map"].update({"lm_head.weight": file}))
    refused(tmp_path, "{source: sharded}", "leads out of the checkpoint's folder", capsys)


def test_a_missing_shard(sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = min(sharded.glob("*.safetensors"))
    gone.unlink()
    refused(tmp_path, "{source: sharded}", gone.name, capsys)


def test_code_in_a_pickle(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": Command(tmp_path / "ran")}, folder / "pytorch_model.bin")
    refused(tmp_path, "{source: model/pytorch_model.bin}", "could run code and were not loaded", capsys)


@pytest.mark.parametrize("source", ["nowhere", "model/nowhere.safetensors"])
def test_nothing_there(folder: Path, tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(tmp_path, f"{{source: {source}}}", "nowhere", capsys)


def test_a_wrong_hash(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = "0a" * 32
    told = refused(tmp_path, f"{{source: model/model.safetensors, sha256: {wrong}}}", "has SHA-256", capsys)
    assert wrong in told
