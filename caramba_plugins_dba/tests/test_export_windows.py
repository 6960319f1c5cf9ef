"""Exported models in which windows with sinks stand beside DBA: logits, continuations, caches, what is refused."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from caramba_plugins_dba.export import exporter
from caramba_plugins_llama.export import export
from caramba_plugins_llama.exporting import Original
from caramba_plugins_sliding_window.attention import SlidingWindowAttention
from caramba_plugins_standard.generation import generate
from caramba_plugins_standard.loading import find_loader
from caramba_plugins_standard.loading.filling import load_weights
from dba_exports import DBA, GQA, bytes_of, continued, make_run, model_of, random_tokens, theirs

from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_core.nn.build import build
from caramba_core.nn.frame import Frame
from caramba_core.plan.nodes import plan_model

pytestmark = pytest.mark.usefixtures("remote_code")

SINKS: dict[str, Any] = {**GQA, "type": "sliding_window", "window": 6, "sinks": 2, "o_bias": True}
JOINT: dict[str, Any] = {**DBA, "sem_dim": 0, "geo_dim": 6, "geo_layout": "shared", "latent": "joint", "v_dim": 14}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "beside a joint latent": (SINKS, JOINT),
    "beside separate latents": (DBA, SINKS),
    "without sinks": ({**SINKS, "sinks": 0}, JOINT),
    "sinks and one token": ({**SINKS, "window": 1}, JOINT),
    "wider than the text": ({**SINKS, "window": 60}, JOINT),
    "offsets": ({**SINKS, "qkv_bias": True}, JOINT),
    "without positions": ({**SINKS, "rope": None}, JOINT),
    "in few bits": (
        {**SINKS, "cache": {"type": "int8", "block": 8}},
        {**JOINT, "cache": {"type": "int4", "block": 128}},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_continuation_and_cache(tmp_path: Path, name: str) -> None:
    """In float64, where no sum's order decides which of two codes is nearer."""
    mine = make_run(tmp_path / "run", model_of(*MODELS[name])).double()
    assert export(tmp_path / "run", tmp_path / "out").exporter == "dba"
    other, tokens = theirs(tmp_path / "out").double(), random_tokens(33)
    with torch.no_grad():
        cache = mine.new_cache(2, capacity=33)
        expected = mine.logits(mine.hidden(tokens, Frame.of(tokens, cache=cache)))
        for options in ({}, {"use_cache": False}):
            torch.testing.assert_close(other(tokens, **options).logits, expected, rtol=0, atol=1e-5)
        past, parts = None, []
        for part in tokens.split([3, 1, 5, 8, 1, 1, 14], dim=1):  # the last part is longer than the window
            output = other(part, past_key_values=past, use_cache=True)
            past = output.past_key_values
            parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=0, atol=1e-5)
    mine_bytes, planned = (
        one.bytes for one in (mine.new_cache(2, capacity=33), mine.float().new_cache(2, capacity=33))
    )
    assert bytes_of(past) == mine_bytes
    assert planned == 2 * plan_model(mine.graph, context=33).cached_bytes(33)
    mine.double()
    assert torch.equal(continued(other, tokens[:, :4], 25).sequences, generate(mine, tokens[:, :4], 25))
    checkpoint = find_loader(tmp_path / "out")
    again = build(lower(structure_model(checkpoint.model())))
    load_weights(again, checkpoint)
    again.double()
    assert torch.equal(again(tokens), mine(tokens))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_caches_and_masks_by_hand(tmp_path: Path, implementation: str) -> None:
    """Static caches keep everything, and hide what a window does not see; so do masks in four axes, and eager."""
    mine = make_run(tmp_path / "run", model_of(SINKS, JOINT))
    export(tmp_path / "run", tmp_path / "out")
    other, tokens = theirs(tmp_path / "out", attn_implementation=implementation), random_tokens(20)
    found = continued(other, tokens[:, :5], 15, cache_implementation="static")
    assert torch.equal(found.sequences, generate(mine, tokens[:, :5], 15))
    whole = torch.ones(1, 1, 20, 20, dtype=torch.bool).tril()
    right = torch.ones(2, 20, dtype=torch.int64)
    right[1, 15:] = 0
    with torch.no_grad():
        for mask in (whole, right, torch.where(whole, 0.0, -torch.inf)):
            logits = other(tokens, attention_mask=mask).logits
            torch.testing.assert_close(logits[:, :15], mine(tokens)[:, :15], rtol=0, atol=1e-5)
        past = other(tokens[:, :12], use_cache=True).past_key_values
        part = whole[..., 12:, :]
        torch.testing.assert_close(
            other(tokens[:, 12:], attention_mask=part, past_key_values=past).logits,
            mine(tokens)[:, 12:],
            rtol=0,
            atol=1e-5,
        )


def test_packed_sequences_have_sinks_of_their_own(tmp_path: Path) -> None:
    make_run(tmp_path / "run", model_of(SINKS, JOINT))
    export(tmp_path / "run", tmp_path / "out")
    other, tokens = theirs(tmp_path / "out"), random_tokens(33, batch=1)
    parts = tokens.split([4, 12, 17], dim=1)
    places = torch.cat([torch.arange(part.shape[1]) for part in parts])[None]
    with torch.no_grad():
        alone = torch.cat([other(part).logits for part in parts], dim=1)
        for options in ({}, {"use_cache": False}):
            found = other(tokens, position_ids=places, **options).logits
            torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("guess", ["prompt", "assistant"])
def test_rejected_guesses_are_taken_back(tmp_path: Path, guess: str) -> None:
    cache_utils = importlib.import_module("transformers.cache_utils")
    if not hasattr(cache_utils.DynamicSlidingWindowLayer, "activate_past_recording"):
        pytest.skip("this version of transformers takes nothing back from a window, whatever the model")
    mine = make_run(tmp_path / "run", model_of(SINKS, JOINT))
    export(tmp_path / "run", tmp_path / "out")
    prompt, other = random_tokens(6, batch=1).repeat(1, 3), theirs(tmp_path / "out")
    guesses: dict[str, Any] = {"prompt_lookup_num_tokens": 4}
    if guess == "assistant":
        assistant = theirs(tmp_path / "out").requires_grad_(False)
        assistant.model.norm.weight[::2] *= 0.2  # right now and then
        guesses = {"assistant_model": assistant}
    assert torch.equal(continued(other, prompt, 30, **guesses).sequences, generate(mine, prompt, 30))


def test_what_was_dropped_does_not_come_back(tmp_path: Path) -> None:
    make_run(tmp_path / "run", model_of(SINKS, JOINT))
    export(tmp_path / "run", tmp_path / "out")
    other, tokens = theirs(tmp_path / "out"), random_tokens(20)
    with torch.no_grad():
        past = other(tokens[:, :7], use_cache=True).past_key_values
        past.layers[0].crop(-3)
        assert past.layers[0].get_seq_length() == past.layers[0].keys.shape[-2] == 4
        past = other(tokens, use_cache=True).past_key_values
    with pytest.raises(RuntimeError, match="2 tokens cannot be taken back"):
        past.layers[0].crop(-2)
    with pytest.raises(ValueError, match="which is negative"):
        past.layers[0].crop(12)


def test_beams_reorder_sinks_too(tmp_path: Path) -> None:
    make_run(tmp_path / "run", model_of(SINKS, JOINT))
    export(tmp_path / "run", tmp_path / "out")
    other, prompt = theirs(tmp_path / "out"), random_tokens(6)
    with_cache = continued(other, prompt, 12, num_beams=3).sequences
    assert torch.equal(with_cache, continued(other, prompt, 12, num_beams=3, use_cache=False).sequences)


def test_rows_that_are_padded_in_front_are_refused(tmp_path: Path) -> None:
    """Where they are no longer than what is held, all of them is seen anyway."""
    make_run(tmp_path / "run", model_of(SINKS, JOINT))
    export(tmp_path / "run", tmp_path / "out")
    other, tokens = theirs(tmp_path / "out"), random_tokens(12)
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    with torch.no_grad():
        other(tokens[:, :8], attention_mask=mask[:, :8])
        with pytest.raises(ValueError, match="pads the beginning of a row"):
            other(tokens, attention_mask=mask)


def test_what_the_modeling_file_does_not_know_is_refused() -> None:
    norms = {"qk_norm_eps", "qk_norm_span", "qk_norm_offset"}
    fields = {field.name for field in attrs.fields(SlidingWindowAttention)}
    assert fields - {"sink_positions"} - norms == exporter._EXPRESSED["sliding_window"] - norms
    for other, reason in (
        ({"sink_positions": "cache"}, "has sink_positions: cache"),
        ({"qk_norm_eps": 1e-5}, "norms of queries and keys"),
    ):
        model = model_of({**SINKS, **other}, JOINT)
        with pytest.raises(exporter.ExportError, match=reason):
            exporter.DBAExporter.describe("caramba", Original(graph=lower(structure_model(model))))
