"""Frequencies of every scaling against transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.rope import Rope

from caramba_core.errors import InvalidValue

LLAMA3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"factor": 4.0, "original_max_position_embeddings": 4096}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("linear", {"factor": 3.0}),
    ("llama3", LLAMA3),
    ("llama3", {**LLAMA3, "factor": 8.0, "low_freq_factor": 2.0, "original_max_position_embeddings": 512}),
    ("yarn", YARN),
    ("yarn", {**YARN, "factor": 1.0}),
    ("yarn", {**YARN, "attention_factor": 0.75}),
    ("yarn", {**YARN, "mscale": 0.707, "mscale_all_dim": 1.3}),
    ("yarn", {**YARN, "mscale": 0.707}),
    ("yarn", {**YARN, "beta_fast": 16.0, "beta_slow": 2.5, "truncate": False}),
    ("yarn", {**YARN, "original_max_position_embeddings": 32}),
]


def oracle(scaling: str, theta: float, head_dim: int, fields: dict[str, Any], context: int | None) -> tuple[Any, float]:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    original = fields.get("original_max_position_embeddings", 2048)
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=original,
        rope_parameters={"rope_type": scaling, "rope_theta": theta, **fields},
    )
    frequencies, attention = ROPE_INIT_FUNCTIONS[scaling](config, torch.device("cpu"), seq_len=context)
    return frequencies, attention


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("head_dim", [8, 64, 80])
@pytest.mark.parametrize(("scaling", "fields"), CASES)
def test_scaled_frequencies_are_those_of_transformers(
    scaling: Any, fields: dict[str, Any], head_dim: int, theta: float
) -> None:
    rope = Rope(theta=theta, scaling=scaling, **fields)
    expected, attention = oracle(scaling, theta, head_dim, fields, None)
    torch.testing.assert_close(torch.tensor(rope.frequencies(head_dim)), expected, rtol=2e-6, atol=0)
    assert rope.attention_scaling == pytest.approx(attention, rel=1e-12)


@pytest.mark.parametrize("context", [None, 100, 2048, 2049, 9000])
def test_dynamic_frequencies_are_those_of_transformers(context: int | None) -> None:
    fields = {"factor": 4.0, "original_max_position_embeddings": 2048}
    rope = Rope(scaling="dynamic", **fields)  # type: ignore[arg-type]
    expected, _ = oracle("dynamic", 10000.0, 64, {"factor": 4.0, "original_max_position_embeddings": 2048}, context)
    torch.testing.assert_close(torch.tensor(rope.frequencies(64, context)), expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize(("scaling", "fields"), [case for case in CASES if case[0] != "yarn"])
def test_where_a_part_turns_the_rest_has_frequency_zero(scaling: Any, fields: dict[str, Any]) -> None:
    """As transformers' ``partial_rotary_factor``, whose frequencies are those of a narrower head."""
    rope = Rope(scaling=scaling, rotated=24, **fields)
    expected, _ = oracle(scaling, 10000.0, 64, {**fields, "partial_rotary_factor": 0.375}, None)
    found = torch.tensor(rope.frequencies(64))
    torch.testing.assert_close(found[:12], expected, rtol=2e-6, atol=0)
    assert found[12:].tolist() == [0.0] * 20
    assert rope.frequencies(24) == Rope(scaling=scaling, **fields).frequencies(24)


@pytest.mark.parametrize("attention_factor", [None, 0.75])
def test_listed_frequencies_are_those_of_longrope_with_one_list(attention_factor: float | None) -> None:
    factors = [1.0, 0.3, 1e30, 7.5]
    given = {} if attention_factor is None else {"attention_factor": attention_factor}
    rope = Rope(theta=300.0, scaling="listed", factors=tuple(factors), **given)
    fields = {"short_factor": factors, "long_factor": factors, "factor": 1.0, **given}
    for context in (None, 9000):
        expected, attention = oracle("longrope", 300.0, 8, fields, context)
        torch.testing.assert_close(torch.tensor(rope.frequencies(8)), expected, rtol=2e-6, atol=0)
        assert rope.attention_scaling == attention


def test_factors_are_one_for_each_pair() -> None:
    rope = Rope(scaling="listed", factors=(1.0, 2.0, 3.0))
    assert GroupedQueryAttention(n_heads=2, n_kv_heads=1, head_dim=6, rope=rope).rope == rope
    with pytest.raises(InvalidValue, match="3 factors for a head of 8 features") as caught:
        GroupedQueryAttention(n_heads=2, n_kv_heads=1, head_dim=8, rope=rope)
    assert caught.value.field == "rope"


def test_plain_frequencies() -> None:
    assert Rope(theta=100.0).frequencies(4) == pytest.approx([1.0, 0.1])
    assert Rope().attention_scaling == 1.0


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"scaling": "linear"}, "factor"),
        ({"scaling": "llama3", "factor": 8.0}, "low_freq_factor"),
        ({"scaling": "yarn", "factor": 8.0}, "original_max_position_embeddings"),
        ({"scaling": "ntk"}, "scaling"),
        ({"factor": 2.0}, "factor"),
        ({"scaling": "linear", "factor": 2.0, "beta_fast": 3.0}, "beta_fast"),
        ({"scaling": "llama3", **LLAMA3, "low_freq_factor": 4.0}, "low_freq_factor"),
        ({"scaling": "linear", "factor": 0.5}, "factor"),
        ({"theta": 1.0}, "theta"),
        ({"rotated": 7}, "rotated"),
        ({"rotated": 0}, "rotated"),
        ({"rotated": 8, "scaling": "yarn", **YARN}, "rotated"),
        ({"rotated": 2, "scaling": "dynamic", "factor": 2.0, "original_max_position_embeddings": 8}, "rotated"),
        ({"scaling": "listed"}, "factors"),
        ({"factors": (1.0, 2.0)}, "factors"),
        ({"scaling": "listed", "factors": (1.0, 0.0)}, "factors"),
        ({"scaling": "listed", "factors": (1.0, float("inf"))}, "factors"),
        ({"scaling": "listed", "factors": (1.0,), "mscale": 0.5}, "mscale"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        Rope(**fields)
    assert caught.value.field == field
