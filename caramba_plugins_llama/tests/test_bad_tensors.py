"""Shards and tensors that do not fit together or into the model: everything that is wrong is named at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from caramba_plugins_standard.loading import PretrainedModel, find_loader
from caramba_plugins_standard.loading.filling import load_weights

from caramba_core.errors import InputError, ManifestError
from caramba_core.nn.build import build

from .conftest import graph_of, read_model
from .damage import edit_config, edit_weights, refused


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


@pytest.mark.parametrize("key", ["vocab_size", "intermediate_size", "hidden_size", "num_attention_heads"])
def test_sizes_that_the_file_does_not_have_are_not_allocated(folder: Path, key: str) -> None:
    """The plan of such a model is made; its weights are compared by the headers before memory is asked for."""
    edit_config(folder, **{key: 2_000_000_000 // 48 * 48})
    checkpoint = find_loader(folder)
    with pytest.raises(InputError, match="does not fit the model"):
        PretrainedModel(checkpoint, graph_of(checkpoint), "").load(torch.device("cpu"), torch.float32)


def test_a_head_that_no_model_has_is_not_even_planned(folder: Path) -> None:
    edit_config(folder, head_dim=2_000_000_000)
    with pytest.raises(ManifestError, match=r"head_dim: 2000000000 is above 65536 features"):
        graph_of(find_loader(folder))
    edit_config(folder, head_dim=65_520)
    checkpoint = find_loader(folder)
    with pytest.raises(InputError, match="does not fit the model"):
        PretrainedModel(checkpoint, graph_of(checkpoint), "").load(torch.device("cpu"), torch.float32)


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


def test_nothing_is_filled_if_the_last_tensor_is_broken(folder: Path) -> None:
    """In the file's type; where values are converted, those before it are."""
    edit_weights(folder, lambda tensors: tensors[sorted(tensors)[-1]].fill_(float("nan")))
    checkpoint = find_loader(folder)
    model = build(graph_of(checkpoint), seed=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match="holds 48 NaN of 48 values"):
        load_weights(model, checkpoint)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


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
