"""Pickled weights: read where they are named and harmless; nothing in them ever runs."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from caramba_plugins_llama.hf_folder import HuggingFaceFolder
from safetensors.torch import load_file

from caramba_core.errors import InputError

from .conftest import read_model
from .damage import refused


class Command:
    """Unpickling this would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("inside", [True, False], ids=["in a mapping", "at the root"])
def test_commands_in_pickles_do_not_run(folder: Path, tmp_path: Path, zipped: bool, inside: bool) -> None:
    command = Command(tmp_path / "ran")
    torch.save(
        {"a": torch.zeros(2), "b": command} if inside else command,
        folder / "pytorch_model.bin",
        _use_new_zipfile_serialization=zipped,
    )
    refused(folder / "pytorch_model.bin", "could run code and were not loaded")
    assert not (tmp_path / "ran").exists()


def test_plain_pickles_do_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Command(tmp_path / "ran"), protocol=2))
    refused(folder / "pytorch_model.bin", "is not a file of weights")
    assert not (tmp_path / "ran").exists()
    (folder / "model.safetensors").write_bytes(pickle.dumps(Command(tmp_path / "ran")))
    refused(folder, "not a sound safetensors file")
    (folder / "tokenizer.json").write_bytes(pickle.dumps(Command(tmp_path / "ran")))
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer"):
        HuggingFaceFolder(folder, folder, {}, {}).tokenizer()
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_read_where_they_are_named(folder: Path) -> None:
    expected = read_model(folder).state_dict()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for zipped in (True, False):
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        found = read_model(folder / "pytorch_model.bin").state_dict()
        assert all(torch.equal(expected[name], tensor) for name, tensor in found.items())
    error = refused(folder, "pickled weights alone, which are read only where they are named")
    assert str(folder / "pytorch_model.bin") in str(error)


def test_pickled_tensors_that_share_memory_become_two(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    torch.save(tensors, folder / "pytorch_model.bin")
    model = read_model(folder / "pytorch_model.bin")
    with torch.no_grad():
        model.head.weight.zero_()
    assert model.embedder.weight.abs().sum() > 0


def test_pickled_shards(folder: Path) -> None:
    expected = read_model(folder).state_dict()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.bin": names[:10], "b.bin": names[10:]}
    for file, held in parts.items():
        torch.save({name: tensors[name] for name in held}, folder / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    found = read_model(folder / "pytorch_model.bin.index.json").state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in found.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds list"),
        ({"a": 1}, "its entry 'a' is not a dense tensor"),
        ({3: torch.zeros(1)}, "its entry '3' is not"),
        ({}, "holds no tensors"),
        ({"a": torch.zeros(2, 2).to_sparse()}, "not a dense tensor|could not be"),
    ],
    ids=["list", "number", "key", "nothing", "sparse"],
)
def test_pickles_of_other_things(folder: Path, content: Any, message: str) -> None:
    torch.save(content, folder / "pytorch_model.bin")
    refused(folder / "pytorch_model.bin", message)


def test_a_pickle_cut_off(folder: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(1000)}, buffer)
    (folder / "pytorch_model.bin").write_bytes(buffer.getvalue()[:2000])
    refused(folder / "pytorch_model.bin", "is not a file of weights")
