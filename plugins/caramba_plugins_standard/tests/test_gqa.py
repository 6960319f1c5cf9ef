"""Grouped-query attention against a reference written pair by pair, and its declared cost."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from caramba_plugins_standard.gqa import GroupedQueryAttention, MultiHeadAttention
from caramba_plugins_standard.gqa_module import GroupedQueryAttentionModule
from caramba_plugins_standard.rope import Rope
from torch import Tensor, nn

from caramba_core.components import Shape
from caramba_core.errors import InvalidValue
from caramba_core.nn.build import initialize
from caramba_core.nn.frame import Frame

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one key for all": {"n_kv_heads": 1},
    "keys of their own": {"n_kv_heads": 6},
    "window": {"window": 3},
    "window of one": {"window": 1},
    "wide window": {"window": 100},
    "biases": {"qkv_bias": True, "o_bias": True},
    "scale": {"scale": 0.05},
    "norms": {"qk_norm_eps": 1e-3},
    "norms over all heads": {"qk_norm_eps": 1e-3, "qk_norm_span": "all"},
    "norms whose weights lie around zero": {"qk_norm_eps": 1e-3, "qk_norm_offset": 1.0},
    "no positions": {"rope": None},
    "a part turns": {"head_dim": 10, "rope": Rope(theta=100.0, rotated=4)},
    "yarn": {"rope": Rope(scaling="yarn", factor=4.0, original_max_position_embeddings=8)},
    "llama3": {
        "rope": Rope(
            scaling="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8
        )
    },
    "odd heads": {"n_heads": 3, "n_kv_heads": 3, "head_dim": 5, "rope": None},
}


def config_of(**changes: Any) -> GroupedQueryAttention:
    return GroupedQueryAttention(**{"n_heads": 6, "n_kv_heads": 2, "head_dim": 4, "rope": Rope(theta=100.0), **changes})


def module_of(
    config: GroupedQueryAttention, width: int, dtype: torch.dtype = torch.float64
) -> GroupedQueryAttentionModule:
    module = GroupedQueryAttentionModule(config, width).to(dtype)
    initialize(module, 0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
    return module


def reference(config: GroupedQueryAttention, w: dict[str, Tensor], x: Tensor, positions: Tensor) -> Tensor:
    """Head by head, token by token, rotation as complex multiplication."""
    heads, d = config.n_heads, config.head_dim

    def project(name: str) -> Tensor:
        y = x @ w[f"{name}_proj"].T
        if config.qkv_bias:
            y = y + w[f"{name}_bias"]
        return y.unflatten(-1, (-1, d))

    def normed(y: Tensor, name: str) -> Tensor:
        if config.qk_norm_eps is None:
            return y
        axes = -1 if config.qk_norm_span == "head" else (-2, -1)
        weight = (config.qk_norm_offset + w[f"{name}_norm"]).view(-1, d)
        return y / (y.pow(2).mean(axes, keepdim=True) + config.qk_norm_eps).sqrt() * weight

    def turned(y: Tensor) -> Tensor:
        if config.rope is None:
            return y
        angles = positions[:, None] * torch.tensor(config.rope.frequencies(d), dtype=x.dtype)
        turn = torch.polar(torch.full_like(angles, config.rope.attention_scaling), angles)
        z = torch.complex(y[..., : d // 2], y[..., d // 2 :]) * turn[:, None]
        return torch.cat([z.real, z.imag], dim=-1)

    query, key, value = turned(normed(project("q"), "q")), turned(normed(project("k"), "k")), project("v")
    scale = 1 / math.sqrt(d) if config.scale is None else config.scale
    rows = []
    for t in range(x.shape[1]):
        first = 0 if config.window is None else max(0, t - config.window + 1)
        mixed = []
        for h in range(heads):
            g = h // (heads // config.n_kv_heads)
            scores = torch.stack([(query[:, t, h] * key[:, s, g]).sum(-1) for s in range(first, t + 1)], dim=-1) * scale
            mixed.append(torch.einsum("bs,bsd->bd", scores.softmax(-1), value[:, first : t + 1, g]))
        rows.append(torch.cat(mixed, dim=-1))
    y = torch.stack(rows, dim=1) @ w["o_proj"].T
    return y + w["o_bias"] if config.o_bias else y


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("shape", [(1, 1, 7), (2, 6, 5), (3, 9, 8)], ids=str)
def test_outputs_and_gradients_follow_the_reference(changes: dict[str, Any], shape: tuple[int, int, int]) -> None:
    config = config_of(**changes)
    module = module_of(config, shape[-1])
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    frame = Frame(positions=torch.arange(shape[1]) + 3)
    weights = dict(module.named_parameters())
    leaves = [x, *weights.values()]
    expected, found = reference(config, weights, x, frame.positions), module(x, frame)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    gradient = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, leaves, gradient, materialize_grads=True)
    got = torch.autograd.grad(found, leaves, gradient, materialize_grads=True)
    for name, one, other in zip(["x", *weights], got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS)
@torch.no_grad()
def test_the_probe_tells_what_the_forward_pass_does(changes: dict[str, Any]) -> None:
    config = config_of(**changes)
    module = module_of(config, 8)
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    frame = Frame(positions=torch.arange(7))
    probe = module.probe(x, frame)
    torch.testing.assert_close(probe.output, module(x, frame))
    torch.testing.assert_close(probe.mixed, module.mix(x, frame))
    torch.testing.assert_close(probe.probabilities.sum(-1), torch.ones(2, config.n_heads, 7, dtype=torch.float64))
    assert not probe.probabilities.triu(1).any()
    share = config.n_heads // config.n_kv_heads
    mixed = probe.probabilities @ probe.value.repeat_interleave(share, dim=1)
    torch.testing.assert_close(mixed.transpose(1, 2).flatten(2), probe.mixed)
    assert probe.query.shape == (2, config.n_heads, 7, config.head_dim)
    assert probe.key.shape == probe.value.shape == (2, config.n_kv_heads, 7, config.head_dim)


@torch.no_grad()
def test_the_probe_of_a_narrow_module_is_taken_in_float32() -> None:
    module = module_of(config_of(qkv_bias=True), 8, torch.bfloat16)
    x = torch.randn(1, 40, 8).to(torch.bfloat16)
    frame = Frame(positions=torch.arange(40) + 1000)
    probe = module.probe(x, frame)
    wide = module_of(config_of(qkv_bias=True), 8, torch.float32)
    wide.load_state_dict(module.state_dict())
    assert probe.output.dtype == torch.float32
    torch.testing.assert_close(probe.output, wide(x.float(), frame))
    assert module.q_proj.dtype == torch.bfloat16


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in ("yarn", "llama3", "wide window")])
def test_what_stays_for_the_backward_pass_is_declared(name: str) -> None:
    """With flash attention, whose kernel keeps a log-sum-exp a row; constants of the positions are not counted."""
    config = config_of(**OPTIONS[name])
    module = module_of(config, 8, torch.float32)
    x = torch.randn(3, 5, 8, requires_grad=True)
    frame = Frame(positions=torch.arange(5))
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        values = storage.nbytes() // tensor.element_size()
        if storage.data_ptr() not in own and values % 15 == 0:  # so many tokens
            kept[storage.data_ptr()] = values
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _held = module(x, frame)
    declared = config.cost(8, Shape(batch=3, tokens=5, context=5)).saved
    assert sum(kept.values()) == declared


@pytest.mark.parametrize("window", [None, 1, 2, 5, 7, 50])
@pytest.mark.parametrize(("tokens", "context"), [(1, 1), (7, 7), (1, 9), (3, 9), (9, 9)])
def test_causal_operations_count_the_pairs_that_are_seen(window: int | None, tokens: int, context: int) -> None:
    config = config_of(window=window)
    shape = Shape(batch=2, tokens=tokens, context=context)
    pairs = sum(
        1
        for t in range(context - tokens, context)
        for s in range(context)
        if s <= t and (window is None or s > t - window)
    )
    attention = config.cost(8, shape).causal_operations - 2 * 2 * tokens * 8 * (2 * 24 + 2 * 8)
    assert attention == 2 * 4 * 24 * pairs


def test_multi_head_attention_is_grouped_attention_with_a_key_a_head() -> None:
    config = MultiHeadAttention(n_heads=3, head_dim=4)
    assert config.n_kv_heads == 3
    grouped = GroupedQueryAttention(n_heads=3, n_kv_heads=3, head_dim=4)
    assert config.weights(8) == grouped.weights(8)
    assert config.cache_spec(8) == grouped.cache_spec(8)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: config_of(n_kv_heads=4), "n_kv_heads"),
        (lambda: config_of(n_heads=0), "n_heads"),
        (lambda: config_of(head_dim=5), "head_dim"),
        (lambda: config_of(window=0), "window"),
        (lambda: config_of(scale=0.0), "scale"),
        (lambda: config_of(rope=Rope(rotated=6)), "rope"),
        (lambda: MultiHeadAttention(n_heads=4, n_kv_heads=2, head_dim=4), "n_kv_heads"),
        (
            lambda: config_of(head_dim=2, rope=Rope(scaling="dynamic", factor=2.0, original_max_position_embeddings=8)),
            "head_dim",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make: Any, field: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        make()
    assert caught.value.field == field


def test_weights_are_named_as_in_checkpoints() -> None:
    module: nn.Module = module_of(config_of(qkv_bias=True, o_bias=True, qk_norm_eps=1e-6), 8)
    assert list(module.state_dict()) == [
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("q_bias", "k_bias", "v_bias", "o_bias"),
        *("q_norm", "k_norm"),
    ]
