"""Small models of several families, random weights: logits and gradients are those of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caramba_plugins_standard.generation import generate
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.layers import LinearHead, RMSNorm, SwiGLU, TokenEmbedder
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.topologies import Nested, Residual, Stacked
from torch import Tensor, nn

from caramba_core.components import Model
from caramba_core.lowering import lower
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5,
    "attn_implementation": "sdpa",
    "initializer_range": 0.2,
}
LLAMA3: dict[str, Any] = {
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": 16}
DYNAMIC: dict[str, Any] = {"factor": 2.0, "original_max_position_embeddings": 16}

Family = tuple[str, dict[str, Any], dict[str, Any]]
FAMILIES: dict[str, Family] = {
    "llama": ("Llama", {}, {}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}, {}),
    "llama with biases": ("Llama", {"attention_bias": True}, {"qkv_bias": True, "o_bias": True}),
    "llama linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
        {"rope": Rope(scaling="linear", factor=2.0)},
    ),
    "llama llama3": (
        "Llama",
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
        {"rope": Rope(theta=5e5, scaling="llama3", **LLAMA3)},
    ),
    "llama yarn": (
        "Llama",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, **YARN}},
        {"rope": Rope(scaling="yarn", **YARN)},
    ),
    "llama dynamic": (
        "Llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        {"rope": Rope(scaling="dynamic", **DYNAMIC)},
    ),
    "mistral with a window": ("Mistral", {"sliding_window": 7}, {"window": 7}),
    "qwen2": ("Qwen2", {}, {"qkv_bias": True}),
    "qwen3": ("Qwen3", {}, {"qk_norm_eps": 1e-5}),
}


def oracle(family: Family) -> nn.Module:
    import transformers

    name, changes, _ = family
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **changes})
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key or "bias" in key:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def model_of(family: Family, source: nn.Module) -> tuple[LanguageModel, dict[str, nn.Parameter]]:
    """The same model here, and the oracle's parameters under this one's names."""
    _, changes, options = family
    tied = bool(changes.get("tie_word_embeddings"))
    attention = GroupedQueryAttention(**{"n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "rope": Rope(), **options})
    block = (Residual(layers=(RMSNorm(), attention)), Residual(layers=(RMSNorm(), SwiGLU(d_ff=56))))
    model = build(
        lower(
            Model(
                head=LinearHead(),
                tied_embeddings=tied,
                embedder=TokenEmbedder(vocab_size=61, d_model=32),
                topology=Stacked(layers=(Nested(name="blocks", repeat=2, layers=block), RMSNorm())),
            )
        )
    )
    theirs = {ours(name): parameter for name, parameter in source.named_parameters()}
    model.load_state_dict(theirs)
    return model, theirs


def ours(name: str) -> str:
    for old, new in (
        ("model.embed_tokens", "embedder"),
        ("lm_head", "head"),
        ("model.layers", "blocks"),
        ("model.norm", "norm"),
        ("post_attention_layernorm", "norm_2"),
        ("input_layernorm", "norm"),
        ("self_attn", "attention"),
        *((f"{part}_norm.weight", f"{part}_norm") for part in "qk"),
        *((f"{part}_proj.weight", f"{part}_proj") for part in ("q", "k", "v", "o", "gate", "up", "down")),
        *((f"{part}_proj.bias", f"{part}_bias") for part in "qkvo"),
    ):
        name = name.replace(old, new)
    return name


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tokens", [1, 11, 40])
def test_logits_and_gradients(name: str, tokens: int) -> None:
    source = oracle(FAMILIES[name])
    model, theirs = model_of(FAMILIES[name], source)
    ids = torch.randint(61, (2, tokens))
    expected: Tensor = source(ids).logits
    found = model(ids)
    with torch.no_grad():
        assert (found - expected).abs().max() <= 2e-5 * expected.abs().max().clamp(min=1.0)
    gradient = torch.randn_like(expected)
    ours_named = dict(model.named_parameters())
    got = torch.autograd.grad(found, list(ours_named.values()), gradient, materialize_grads=True)
    wanted = torch.autograd.grad(expected, [theirs[name] for name in ours_named], gradient, materialize_grads=True)
    for key, one, other in zip(ours_named, got, wanted, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max().clamp(min=1.0), key


@pytest.mark.parametrize("name", ["llama", "llama yarn", "mistral with a window", "qwen3"])
@torch.no_grad()
def test_greedy_continuation(name: str) -> None:
    source: Any = oracle(FAMILIES[name])
    model, _ = model_of(FAMILIES[name], source)
    ids = torch.randint(1, 61, (2, 5))
    expected = source.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(generate(model, ids, 12), expected)
