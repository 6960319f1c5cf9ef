"""Logits equal those of transformers, for every family, past the boundary where rotary scaling begins to matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from caramba_plugins_standard.generation import generate

from .conftest import all_in_64_bits, quiet, random_tokens, read_model, write_oracle

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MIXED = ["sliding_attention", "sliding_attention", "full_attention"]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LISTED = {"rope_type": "longrope", "short_factor": [1.0, 0.5, 1e30, 3.0], "long_factor": [1.0, 0.5, 1e30, 3.0]}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-offsets": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-one-head-each": ("llama", {"num_key_value_heads": 6, "head_dim": None}),
    "llama-wide-heads": ("llama", {"head_dim": 20}),
    "llama-theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 300.0}}),
    "llama-dynamic": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 16},
    ),
    "llama-llama3": ("llama", {"rope_parameters": {**LLAMA3, "rope_theta": 100.0}}),
    "llama-yarn": ("llama", {"rope_parameters": {**YARN, "rope_theta": 50.0}}),
    "llama-yarn-factor": (
        "llama",
        {"rope_parameters": {**YARN, "attention_factor": 0.7, "beta_fast": 3, "beta_slow": 0.5}},
    ),
    "llama-yarn-mscale": (
        "llama",
        {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3, "truncate": False}},
    ),
    "llama-longrope": ("llama", {"rope_parameters": {**LISTED, "rope_theta": 50.0}}),
    "llama-longrope-factor": (
        "llama",
        {"rope_parameters": {**LISTED, "factor": None, "original_max_position_embeddings": 16}},
    ),
    "mistral": ("mistral", {"sliding_window": 7}),
    "mistral-everything": ("mistral", {"sliding_window": None}),
    "ministral": (
        "ministral",
        {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 12}),
    "qwen3-offsets": ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "qwen3-yarn": ("qwen3", {"rope_parameters": {**YARN, "rope_theta": 1000.0}}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 2}),
    "smollm3-windows": (
        "smollm3",
        {"no_rope_layers": [0, 1, 1], "use_sliding_window": True, "sliding_window": 7, "tie_word_embeddings": False},
    ),
    "smollm3-offsets": ("smollm3", {"attention_bias": True, "mlp_bias": True, "no_rope_layers": [1, 1, 1]}),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.4,
            "logits_scaling": 0.7,
        },
    ),
    "granite-offsets": ("granite", {"attention_bias": True, "mlp_bias": True, "logits_scaling": 2.0}),
    "olmo2": ("olmo2", {}),
    "olmo2-wide-heads": ("olmo2", {"head_dim": 12, "attention_bias": True, "tie_word_embeddings": True}),
    "olmo3": ("olmo3", {"sliding_window": 7}),
    "olmo3-yarn": (
        "olmo3",
        {
            "sliding_window": 9,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {**YARN, "rope_theta": 50.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 80.0},
            },
        },
    ),
    "glm4": ("glm4", {"head_dim": 12, "rope_parameters": {"partial_rotary_factor": 0.7, "rope_theta": 100.0}}),
    "glm4-whole-heads": ("glm4", {"partial_rotary_factor": 1.0, "attention_bias": False}),
    "phi3": ("phi3", {}),
    "phi3-a-part-turns": (
        "phi3",
        {
            "sliding_window": 9,
            "rope_parameters": {"partial_rotary_factor": 0.75, "rope_theta": 100.0, "rope_type": "default"},
        },
    ),
    "gemma": ("gemma", {"head_dim": 10}),
    "gemma3": ("gemma3_text", {"sliding_window": 7, "query_pre_attn_scalar": 24, "layer_types": MIXED}),
    "gemma3-linear": (
        "gemma3_text",
        {
            "layer_types": MIXED,
            "attention_bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 300.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
            },
        },
    ),
    "ernie": ("ernie4_5", {}),
    "ernie-offsets": ("ernie4_5", {"use_bias": True, "tie_word_embeddings": False, "head_dim": 20}),
    "seed": ("seed_oss", {"attention_out_bias": True, "mlp_bias": True}),
    "exaone4": ("exaone4", {"sliding_window": 7, "sliding_window_pattern": 2}),
    "exaone4-everything": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 3}),
    "apertus": ("apertus", {"rope_parameters": {**LLAMA3, "rope_theta": 100.0}}),
    "apertus-offsets": ("apertus", {"attention_bias": True, "hidden_act": "gelu"}),
    "arcee": ("arcee", {"mlp_bias": True, "attention_bias": True}),
    "arcee-silu": ("arcee", {"hidden_act": "silu", "rope_parameters": {**YARN, "rope_theta": 50.0}}),
    "cwm": ("cwm", {"sliding_window": 7, "rope_parameters": {**LLAMA3, "rope_theta": 100.0}}),
    "helium": ("helium", {"attention_bias": True}),
    "llama-gelu": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return CASES[request.param]


def test_logits_in_32_bits(case: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    model_type, config = case
    oracle = write_oracle(tmp_path, model_type, **config)
    model = read_model(tmp_path)
    tokens = random_tokens(48)
    with torch.no_grad():
        expected = oracle(tokens).logits
        found = model(tokens)
    assert expected.abs().max() > 1, "a model whose logits are near zero proves nothing"
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_logits_in_64_bits(case: tuple[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_type, config = case
    write_oracle(tmp_path, model_type, **config)
    tokens = random_tokens(48)
    with all_in_64_bits(model_type, monkeypatch), quiet(), torch.no_grad():
        import transformers

        oracle = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, dtype=torch.float64, attn_implementation="eager"
        )
        expected = oracle.eval()(tokens).logits
    assert expected.dtype == torch.float64
    with torch.no_grad():
        found = read_model(tmp_path, torch.float64)(tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


CONTINUED = """
    llama-llama3 llama-yarn mistral qwen2-window qwen3 smollm3-windows granite olmo3 glm4 phi3-a-part-turns gemma3
    ernie exaone4 apertus arcee
"""


@pytest.mark.parametrize("name", CONTINUED.split())
def test_greedy_continuations(name: str, tmp_path: Path) -> None:
    """Through both caches: transformers' and caramba's."""
    model_type, config = CASES[name]
    oracle = write_oracle(tmp_path, model_type, **config)
    tokens = random_tokens(12)
    expected = oracle.generate(tokens, max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(generate(read_model(tmp_path), tokens, 40), expected)
