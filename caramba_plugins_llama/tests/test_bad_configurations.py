"""Configurations of other things, or with faults: each is told, nothing is guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from caramba_plugins_standard.loading import find_loader

from .conftest import write_oracle
from .damage import LFS, edit_config, refused


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
        hidden_act="tanh",
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
        "hidden_act is 'tanh', not one of silu, swish, gelu,",
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
        ({"rope_parameters": {"rope_type": "su"}}, "rope type 'su'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "short_factor is None, not a list of positive numbers"),
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
