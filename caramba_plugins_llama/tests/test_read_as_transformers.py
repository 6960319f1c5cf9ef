"""What a folder says in unusual ways is read as transformers reads it, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from caramba_plugins_standard.loading import find_loader
from safetensors.torch import load_file, save_file

from .conftest import quiet, random_tokens, read_model, write_oracle
from .damage import edit_config, edit_weights, refused

Tensors = dict[str, torch.Tensor]
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 50.0}
SCALED = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MIXED = ["full_attention", "sliding_attention", "full_attention"]


def same_logits(folder: Path) -> None:
    """The model that transformers reads from the folder, and caramba's."""
    import transformers

    tokens = random_tokens(48)
    with quiet(), torch.no_grad():
        oracle = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        expected = oracle.eval()(tokens).logits
    torch.testing.assert_close(read_model(folder)(tokens), expected, rtol=0, atol=2e-5)


def other_head(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()


def head_alone(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")


def head_like_the_embeddings(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def wider_head(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].double()


def base_class(tensors: Tensors) -> None:
    for key in list(tensors):
        tensors[key.removeprefix("model.")] = tensors.pop(key)


def head_below_the_model(tensors: Tensors) -> None:
    tensors["model.lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).contiguous()


TIED: dict[str, tuple[Callable[[Tensors], None], bool]] = {
    "a head of its own": (other_head, False),
    "a head of its own under the model's prefix": (head_below_the_model, False),
    "the head alone": (head_alone, True),
    "the same twice": (head_like_the_embeddings, True),
    "the same in another type": (wider_head, False),
    "keys of the class without head": (base_class, True),
}
"""How a checkpoint whose configuration ties embeddings is stored; whether caramba's model is tied."""


@pytest.mark.parametrize("name", TIED)
@pytest.mark.parametrize("pickled", [False, True])
def test_tied_embeddings(tmp_path: Path, name: str, pickled: bool) -> None:
    change, tied = TIED[name]
    write_oracle(tmp_path, "llama", tie_word_embeddings=True)
    edit_weights(tmp_path, change)
    source = tmp_path
    if pickled:
        source = tmp_path / "pytorch_model.bin"
        torch.save(load_file(tmp_path / "model.safetensors"), source)
        (tmp_path / "model.safetensors").unlink()
    assert find_loader(source).model()["tied_embeddings"] is tied
    import transformers

    tokens = random_tokens(20)
    with quiet(), torch.no_grad():
        oracle = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        expected = oracle.eval()(tokens).logits
    torch.testing.assert_close(read_model(source)(tokens), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("mistral", {"layer_types": MIXED, "sliding_window": 5}),
        ("mistral", {"layer_types": ["full_attention"] * 3, "sliding_window": 5}),
        ("mistral", {"layer_types": None, "sliding_window": 5}),
        ("mistral", {"sliding_window": 5, "use_sliding_window": False}),
        ("llama", {"num_key_value_heads": None}),
        ("ministral", {"layer_types": MIXED, "sliding_window": 5}),
        ("ministral", {"sliding_window": 5}),
        ("qwen2", {"layer_types": MIXED, "sliding_window": 5, "use_sliding_window": True}),
        ("qwen2", {"sliding_window": None, "use_sliding_window": True, "max_window_layers": 0}),
        ("llama", {"layer_types": ["full_attention"] * 3}),
        ("llama", {"rope_parameters": {**YARN, "original_max_position_embeddings": 16}}),
        ("llama", {"original_max_position_embeddings": 16, "rope_parameters": YARN}),
        (
            "llama",
            {
                "original_max_position_embeddings": 12,
                "rope_parameters": {**YARN, "original_max_position_embeddings": 24},
            },
        ),
        (
            "llama",
            {
                "original_max_position_embeddings": 12,
                "rope_parameters": {**LLAMA3, "rope_theta": 100.0, "original_max_position_embeddings": 32},
            },
        ),
        ("llama", {"rope_theta": 40.0, "rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}),
        ("llama", {"rope_theta": 40.0, "rope_parameters": {"rope_type": "linear", "factor": 3.0}}),
        (
            "llama",
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
            },
        ),
        ("llama", {"rope_parameters": {"type": "linear", "rope_type": "default", "rope_theta": 300.0}}),
        ("llama", {"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 1.0}}),
        ("llama", {"original_max_position_embeddings": 9, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "original_max_position_embeddings": 9}}),
        ("llama", {"is_causal": True, "head_dim": None}),
        ("qwen2", {"attention_bias": False}),
        ("olmo3", {"rope_parameters": None, "rope_theta": 40.0, "rope_scaling": SCALED, "sliding_window": 5}),
        ("olmo3", {"rope_parameters": {"full_attention": YARN}, "layer_types": None, "sliding_window": 5}),
        (
            "gemma3_text",
            {
                "rope_parameters": None,
                "rope_theta": 300.0,
                "rope_local_base_freq": 20.0,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                "layer_types": None,
                "sliding_window_pattern": 2,
                "sliding_window": 5,
            },
        ),
        ("exaone4", {"layer_types": None, "sliding_window_pattern": 2, "sliding_window": 5}),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 2, "layer_types": None}),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 0, 0], "use_sliding_window": True, "sliding_window": 5}),
        ("cwm", {"layer_types": None, "rope_parameters": None, "sliding_window": 5}),
        ("apertus", {"rope_parameters": None, "rope_theta": 40.0}),
        ("apertus", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 3.0}}),
        ("glm4", {"rope_parameters": None, "partial_rotary_factor": 0.75, "rope_theta": 100.0}),
        ("glm4", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
        ("glm4", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}}),
        ("phi3", {"rope_parameters": None, "partial_rotary_factor": 0.5, "rope_theta": 50.0}),
        ("gemma", {"hidden_act": "gelu", "hidden_activation": None}),
        ("granite", {"logits_scaling": 8, "embedding_multiplier": 12}),
    ],
)
def test_configurations_that_transformers_reads(tmp_path: Path, model_type: str, config: dict[str, Any]) -> None:
    known = {"layer_types", "sliding_window", "use_sliding_window", "max_window_layers"}
    shape = {"num_key_value_heads"} if model_type == "mistral" else {*known, "num_key_value_heads"}
    write_oracle(tmp_path, model_type, **{key: config[key] for key in shape & set(config)})
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    if "rope_parameters" in config:
        written.pop("rope_theta", None)
    if config.get("layer_types", 0) is None:
        written.pop("layer_types", None)
    path.write_text(json.dumps({**written, **config}))
    same_logits(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"is_causal": False}, "is_causal is False: tokens would see the text behind them"),
        ({"sliding_window": 7}, "sliding_window is 7: a llama model has no window"),
        ({"layer_types": MIXED}, "there is no sliding window"),
        ({"per_layer_config": {"1": {"intermediate_size": 40}}}, "per_layer_config is .*layers that differ"),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights is 'other.safetensors': this key is not"),
        ({"configuration_files": ["config.4.0.0.json"]}, "configuration_files is .* not known, and may change"),
        ({"logit_scale": 0.5}, r"logit_scale is 0\.5: this key is not known"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "quantization is .*MLX"),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "quantization_config is .*'fp8'.*: the weights are quantized",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "beta_fast": 3}},
            "linear rope scaling: beta_fast is 3",
        ),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, "the rope type "),
        (
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1] * 4, "long_factor": [2] * 4}},
            "short_factor and long_factor of longrope differ: .*change with the length of the text",
        ),
        (
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1] * 3, "long_factor": [1] * 3}},
            "longrope lists 3 factors for heads of 8 features",
        ),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention is"),
        ({"hidden_act": "xielu"}, "hidden_act is 'xielu', not one of silu, swish, gelu,"),
        ({"attention_bias": None}, "attention_bias is None"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None"),
    ],
)
def test_configurations_that_cannot_be_expressed(folder: Path, config: dict[str, Any], message: str) -> None:
    edit_config(folder, **config)
    refused(folder, message)


def test_settings_of_generation_are_known(folder: Path) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [2, 3], "temperature": 0.6, "do_sample": True, "seed": None}))
    read_model(folder)
    path.write_text(json.dumps({"eos_token_id": 2, "logit_bias_of_mine": 3}))
    refused(folder, "generation_config.json is not understood:\n    logit_bias_of_mine is 3: this key is not known")


# ------------------------------------------------------------------------------------------------ shards


def indexed(folder: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((folder / "model.safetensors.index.json").read_text())
    return index


@pytest.mark.parametrize(
    "names",
    [
        ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.inv_freq"],
        ["lm_head.weight"],
        ["vision.tower.weight"],
    ],
)
def test_an_index_that_lists_names_that_nobody_needs(tmp_path: Path, names: list[str]) -> None:
    write_oracle(tmp_path, "llama", shards=True, tie_word_embeddings=True)
    index = indexed(tmp_path)
    index["weight_map"] |= dict.fromkeys(names, min(index["weight_map"].values()))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    same_logits(tmp_path)


def test_an_index_that_leaves_names_out(sharded: Path) -> None:
    index = indexed(sharded)
    files = list(index["weight_map"].values())
    del index["weight_map"][next(key for key, file in index["weight_map"].items() if files.count(file) > 1)]
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    same_logits(sharded)


def test_shards_beside_a_single_file(sharded: Path) -> None:
    """The single file counts, in transformers too; the index where it is named."""
    tensors: Tensors = {}
    for shard in sharded.glob("*.safetensors"):
        tensors |= load_file(shard)
    before = read_model(sharded)(random_tokens(5))
    save_file({key: value * 0.9 for key, value in tensors.items()}, sharded / "model.safetensors")
    same_logits(sharded)
    assert not torch.equal(read_model(sharded)(random_tokens(5)), before)
    assert torch.equal(read_model(sharded / "model.safetensors.index.json")(random_tokens(5)), before)


# ------------------------------------------------------------------------------------------------ types


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_plain_values_of_8_bits(folder: Path, dtype: torch.dtype, pickled: bool) -> None:
    """Without scales they are what they say."""

    def round_off(tensors: Tensors) -> None:
        for key, value in tensors.items():
            tensors[key] = value.to(dtype) if value.ndim == 2 else value

    edit_weights(folder, round_off)
    if pickled:
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        rounded = read_model(folder)(random_tokens(5))
        assert torch.equal(read_model(folder / "pytorch_model.bin")(random_tokens(5)), rounded)
    else:
        same_logits(folder)


@pytest.mark.parametrize("dtype", [torch.uint32, torch.uint16, torch.float8_e8m0fnu])
def test_values_that_quantizers_pack(folder: Path, dtype: torch.dtype) -> None:
    """As MLX and others store them: a sound file, and not one to fetch again."""

    def pack(tensors: Tensors) -> None:
        for key in [key for key in tensors if "mlp" in key]:
            tensors[key] = torch.zeros(48, 10, dtype=dtype)

    edit_weights(folder, pack)
    text = str(refused(folder, r"is a sound safetensors file with types that are not read: model\.layers\.0\.mlp"))
    assert "fetch" not in text
    assert "MLX" in text
