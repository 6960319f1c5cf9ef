"""Checkpoints that are damaged, hostile or of something else: one clear error each, before anything is computed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from caramba_plugins_llama.hf_folder import HuggingFaceFolder
from caramba_plugins_llama.safetensors_file import read_header
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from caramba_core.errors import InputError
from caramba_core.loading import find_loader, open_source
from caramba_core.nn.build import build
from caramba_core.nn.filling import load_weights

from .conftest import graph_of, read_model, write_oracle

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n"


def refused(path: Path, message: str) -> InputError:
    with pytest.raises(InputError, match=message) as caught:
        read_model(path)
    return caught.value


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def safetensors_bytes(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


# ------------------------------------------------------------------------------------------------ not a checkpoint


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
        (b"", "has 0 bytes"),
        (LFS, "claims a header of"),
        (pickle.dumps({"a": 1}), "not a sound safetensors file"),
        (b"<html></html>", "claims a header of"),
    ],
    ids=["empty", "lfs", "pickle", "html"],
)
def test_weights_of_other_kinds_inside_a_folder(folder: Path, content: bytes, message: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, message)


# ------------------------------------------------------------------------------------------------ headers that lie

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
    "unknown dtype": (safetensors_bytes({"a": {**F32, "dtype": "F8_E4M3"}}, bytes(8)), "has type 'F8_E4M3'"),
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


# ------------------------------------------------------------------------------------------------ shards


def edit_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "sub/../../x", "..\\x", "C:\\x", "\\\\host\\x", "C:x", "", "a\0b"]
)
def test_index_that_leads_out(sharded: Path, name: str) -> None:
    edit_index(sharded, lambda index: index["weight_map"].update({"lm_head.weight": name}))
    refused(sharded, "leads out of the checkpoint's folder")


def test_links_that_lead_out(sharded: Path, folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{}")
    shard = min(sharded.glob("*.safetensors"))
    shard.unlink()
    shard.symlink_to(secret)
    refused(sharded, "is a link that leads out")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(secret)
    refused(folder, "config.json is a link that leads out")


def test_links_inside_the_hubs_cache_are_its_own(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        path.rename(repository / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    read_model(snapshot)
    (snapshot / "config.json").unlink()
    (tmp_path / "elsewhere").write_text("{}")
    (snapshot / "config.json").symlink_to("../../../elsewhere")
    refused(snapshot, "leads out")


def test_missing_shards_are_all_named(sharded: Path) -> None:
    gone = sorted(sharded.glob("*.safetensors"))[:2]
    for path in gone:
        path.unlink()
    error = refused(sharded, "names files that are not there")
    assert all(path.name in str(error) for path in gone)


def test_shards_that_are_not_what_the_index_says(sharded: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"

    def move(index: dict[str, Any]) -> None:
        other = next(file for file in index["weight_map"].values() if file != index["weight_map"][name])
        index["weight_map"][name] = other

    edit_index(sharded, move)
    refused(sharded, f"is not the shard that the index describes: it (lacks|also holds) {name}")


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 1}, "x"])
def test_index_without_a_map(sharded: Path, weight_map: Any) -> None:
    edit_index(sharded, lambda index: index.update(weight_map=weight_map))
    refused(sharded, "has no weight_map")


# ---------------------------------------------------------------------------------------------- tensors that do not fit


def test_everything_that_does_not_fit_is_in_one_error(folder: Path) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]
        for layer in range(3):
            del tensors[f"model.layers.{layer}.mlp.up_proj.weight"]
        tensors["model.layers.1.self_attn.q_proj.weight"] = torch.zeros(48, 47)
        tensors["model.layers.0.adapter.weight"] = torch.zeros(3)
        tensors["something.else"] = torch.zeros(2, 2)

    edit_weights(folder, damage)
    error = refused(folder, r"does not fit the model \(7 of its tensors\)")
    lines = str(error).splitlines()
    assert sum("the checkpoint does not hold it" in line for line in lines) == 2
    assert any("model.blocks.{0-2}.mlp.up_proj [80, 48] is in the model" in line for line in lines)
    assert any("model.norm.weight [48] is in the model" in line for line in lines)
    wrong = "q_proj.weight has shape [48, 47], and model.blocks.1.attention.q_proj expects [48, 48]"
    assert any(wrong in line for line in lines)
    assert any("model.layers.0.adapter.weight [3] is in the checkpoint" in line for line in lines)
    assert any("something.else [2, 2] is in the checkpoint" in line for line in lines)


def test_a_shorter_model_than_the_checkpoint(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=2)
    refused(
        folder, r"model\.layers\.2\.input_layernorm\.weight \[48\] is in the checkpoint, and the model has no place"
    )


def test_nothing_is_written_before_all_headers_fit(folder: Path) -> None:
    checkpoint = find_loader(folder)
    model = build(graph_of(checkpoint), seed=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    edit_weights(folder, lambda tensors: tensors.update({"extra": torch.zeros(1)}))
    with pytest.raises(InputError, match="extra"):
        load_weights(model, find_loader(folder))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_places_in_the_manifest_are_told(folder: Path) -> None:
    checkpoint = find_loader(folder)
    model = build(graph_of(checkpoint))
    edit_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(5)}))
    with pytest.raises(InputError, match=r"model\.norm\.weight \(m\.yml:12\) expects \[48\]"):
        load_weights(model, find_loader(folder), place=lambda path: "m.yml:12")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_values_that_are_no_numbers_are_all_named(folder: Path, dtype: torch.dtype) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = tensor.to(dtype)
        tensors["model.layers.2.mlp.down_proj.weight"][3, 4] = float("nan")
        tensors["model.norm.weight"][:2] = float("-inf")
        tensors["model.layers.0.self_attn.k_proj.weight"][0, :2] = torch.tensor([float("inf"), float("nan")])

    edit_weights(folder, damage)
    error = refused(folder, r"3 of its tensors")
    assert "model.layers.2.mlp.down_proj.weight holds 1 NaN of 3840 values (fills model.blocks.2.mlp.down_proj)" in str(
        error
    )
    assert "model.norm.weight holds 2 infinite of 48 values" in str(error)
    assert "k_proj.weight holds 1 NaN and 1 infinite of 768 values" in str(error)


def test_large_finite_values_are_fine(folder: Path) -> None:
    """Their sum is not finite; they are."""
    edit_weights(folder, lambda tensors: tensors["model.norm.weight"].fill_(3e38))
    assert float(read_model(folder).state_dict()["norm.weight"].max()) == pytest.approx(3e38)


def test_whole_numbers_are_no_weights(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(48, dtype=torch.int64)}))
    refused(folder, "model.norm.weight holds int64, not floating-point numbers")


def test_known_tensors_that_nothing_needs_are_reported(folder: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    edit_weights(folder, add)
    checkpoint = find_loader(folder)
    unused = load_weights(build(graph_of(checkpoint)), checkpoint)
    assert [entry.key for entry in unused] == ["model.layers.0.self_attn.rotary_emb.inv_freq"]


# ------------------------------------------------------------------------------------------------ pickles


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


# ------------------------------------------------------------------------------------------------ configurations


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"[]", "no JSON object"),
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (LFS, "git-LFS pointer"),
        (b"{}", "does not say its model_type"),
        (b'{"model_type": "resnet"}', "not of the Llama family"),
        (b'{"model_type": "gemma2"}', "caps attention scores"),
        (b'{"model_type": ["llama"]}', "not of the Llama family"),
    ],
)
def test_configurations_of_other_things(folder: Path, content: bytes, message: str) -> None:
    (folder / "config.json").write_bytes(content)
    refused(folder, message)


def test_no_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, "has no config.json")
    refused(folder / "model.safetensors", "has no config.json")


def test_every_fault_of_a_configuration_is_told(folder: Path) -> None:
    edit_config(
        folder,
        hidden_size="48",
        num_hidden_layers=-3,
        num_attention_heads=True,
        intermediate_size=None,
        hidden_act="gelu",
        rms_norm_eps=0,
        attention_bias="no",
        quantization_config={"bits": 4},
        rope_parameters={"rope_type": "llama3", "factor": 8.0, "rope_theta": -1},
    )
    text = str(refused(folder, "does not describe a model that caramba can build"))
    for part in (
        "hidden_size is '48', not a size",
        "num_hidden_layers is -3, not a size",
        "num_attention_heads is True, not a size",
        "intermediate_size is missing",
        "hidden_act is 'gelu'",
        "rms_norm_eps is 0, not a positive number",
        "attention_bias is 'no', not true or false",
        "quantization_config",
        "low_freq_factor is missing, which llama3 rope scaling needs",
        "rope_theta is -1, not a positive number",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope type 'longrope'"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "whole heads are rotated"),
        ({"rope_scaling": 3}, "rope_scaling is 3"),
        ({"num_key_value_heads": 4}, "num_key_value_heads 4 does not divide num_attention_heads 6"),
        ({"num_attention_heads": 7, "head_dim": None, "num_key_value_heads": 1}, "7 does not divide hidden_size 48"),
    ],
)
def test_what_cannot_be_expressed(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(folder, **changes)
    refused(folder, message)


def test_windows_must_be_plain(tmp_path: Path) -> None:
    write_oracle(tmp_path / "qwen", "qwen2")
    edit_config(tmp_path / "qwen", layer_types=["full_attention", "chunked_attention", "full_attention"])
    refused(tmp_path / "qwen", "layer_types is")
    edit_config(tmp_path / "qwen", layer_types=["full_attention", "sliding_attention", "full_attention"])
    refused(tmp_path / "qwen", "there is no sliding window")


def test_configurations_of_older_versions_mean_the_same(folder: Path) -> None:
    """``rope_theta`` and ``rope_scaling`` with ``type``, before they became ``rope_parameters``."""
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 777.0, "rope_scaling": {"type": "linear", "factor": 2}}
    (folder / "config.json").write_text(json.dumps(config))
    nested: Any = find_loader(folder).model()["topology"]["layers"][0]
    rope = nested["layers"][0]["layers"][1]["rope"]
    assert rope == {"theta": 777.0, "scaling": "linear", "factor": 2.0}
