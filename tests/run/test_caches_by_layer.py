"""Attentions that say how their own caches are stored: plans, decoding and measuring follow, and ``eval`` overrules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caramba_plugins_standard.decoding import Decoder
from caramba_plugins_standard.perplexity import hidden_states, measure
from caramba_plugins_standard.quantized import Full, Int4, Int8

from caramba_core.cli import main
from caramba_core.components import Storage, evolve
from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_core.modes import Evaluation
from caramba_core.nn.build import build
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel
from caramba_core.plan import plan_model

from .models import TINY
from .test_measuring_a_cache import FULL, TOKENS, decoded
from .workspace import make_workspace

GQA = {"type": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "rope": {"theta": 100.0}}
ATTENTIONS: dict[str, dict[str, Any]] = {
    "gqa": GQA,
    "joint": {**GQA, "type": "dba", "latent": "joint", "sem_dim": 0, "geo_dim": 4, "v_dim": 7, "geo_layout": "shared"},
    "mla": {**GQA, "type": "mla", "rank": 9, "rope_dim": 4},
    "sliding_window": {**GQA, "type": "sliding_window", "window": 6, "sinks": 2},
    "linear_attention": {**GQA, "type": "linear_attention", "features": 4, "window": 4},
}
CACHES = [{"type": "int8", "block": 4}, None, {"type": "int4", "block": 4}]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def model_of(attention: dict[str, Any], caches: list[Any]) -> LanguageModel:
    """Three blocks in float64, whose weights are large enough for attention to matter."""
    described = json.loads(json.dumps(TINY))
    blocks = described["topology"]["layers"][0]
    blocks["layers"][0]["layers"][1] = attention
    blocks |= {"repeat": len(caches), "each": {"attention.cache": caches}}
    model = build(lower(structure_model(described)), seed=1, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)
    return model.requires_grad_(False)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_one_pass_measures_what_decoding_gives(name: str) -> None:
    model = model_of(ATTENTIONS[name], CACHES)
    found = measure(model, TOKENS, FULL).nll
    np.testing.assert_allclose(found, decoded(model, FULL).numpy(), rtol=0, atol=1e-5)
    whole = measure(model, TOKENS, evolve(FULL, cache=Full())).nll
    np.testing.assert_allclose(whole, measure(model_of(ATTENTIONS[name], [None] * 3), TOKENS, FULL).nll, atol=1e-12)
    assert np.abs(found - whole).mean() > 1e-5
    overruled, four = evolve(FULL, cache=Int4(block=4)), model_of(ATTENTIONS[name], [CACHES[2]] * 3)
    np.testing.assert_allclose(measure(model, TOKENS, overruled).nll, measure(four, TOKENS, FULL).nll, atol=1e-12)


@pytest.mark.parametrize("storage", [None, Full(), Int8()], ids=["own", "full", "int8"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_plans_count_what_is_held(name: str, storage: Storage | None) -> None:
    model = model_of(ATTENTIONS[name], CACHES)
    plan = plan_model(model.graph, context=16, dtype="float64")
    held = model.new_cache(1, capacity=16, storage=storage)
    assert held.bytes == plan.cached_bytes(16, storage)
    assert (plan.total.context_bytes == held.bytes) is (storage is None)
    if name == "gqa":  # 12 keys and 12 values: codes and three blocks of 4 bytes; float64; codes in half the bytes
        own = 16 * 2 * ((12 + 12) + 12 * 8 + (6 + 12))
        assert plan.total.context_bytes == own
        assert plan.total.cache_bytes == own // 16


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [name for name in ATTENTIONS if name != "linear_attention"])
def test_decoders_read_each_cache_as_it_is_stored(name: str, device: str) -> None:
    attention = {**ATTENTIONS[name], "head_dim": 16}
    model = model_of(attention, ["int8", None, "int4"]).to(device, torch.float32).eval()
    ids = torch.randint(40, (2, 20), generator=torch.Generator().manual_seed(1)).to(device)
    decoder = Decoder(model, batch=2, capacity=20)
    assert bool(decoder.unrecorded) is (device == "cpu")
    assert [layer.lossy for layer in decoder.cache.layers()] == [True, False, True]
    found = [decoder.prefill(ids[:, :12]), *(decoder.step(ids[:, i]).clone() for i in range(12, 20))]
    wanted = model.logits(hidden_states(model, ids, None))[:, 11:]
    torch.testing.assert_close(torch.stack(found, dim=1), wanted, atol=2e-3, rtol=2e-3)
    cache = model.new_cache(2, storage=Full())
    plain = model(ids, Frame.of(ids, cache=cache))[:, 11:]
    torch.testing.assert_close(plain, model(ids)[:, 11:], atol=1e-4, rtol=1e-4)
    assert (plain - wanted).abs().max() > 0.01


def run(manifest: Path, *more: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as ended:
        main(["run", str(manifest), "--output", str(manifest.parent / "runs"), "--run", "convert", *more])
    assert not ended.value.code
    folder = manifest.parent / "runs" / "small" / "half" / "convert"
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in ("summary", "plan", "calibration")}


def test_a_run_with_caches_by_layer(tmp_path: Path) -> None:
    """The teacher's attention stays in one layer, in 8 bits: what differs in its cache alone is not converted."""
    manifest = make_workspace(tmp_path)
    text = manifest.read_text()
    kept = "{type: gqa, n_heads: 4, n_kv_heads: 2, head_dim: 8, rope: {theta: 100.0}}"
    text = text.replace(
        "        repeat: ${layers}\n",
        "        repeat: ${layers}\n        each: {attention.cache: [null, int8, {type: int4, block: 8}], "
        "attention.geo_dim: [8, null, 4]}\n        order: [0, 1, 0]\n        variants:\n          - "
        f"[{{type: residual, layers: [{{type: rms_norm, eps: 1.0e-5}}, {kept}]}}, "
        "{type: residual, layers: [{type: rms_norm, eps: 1.0e-5}, {type: swiglu, d_ff: 48}]}]\n",
    )
    manifest.write_text(text)
    found = run(manifest)
    assert sorted(found["calibration"]) == ["model.blocks.0.attention", "model.blocks.2.attention"]
    # 22 values in float32; 16 keys and 16 values in 8 bits, one block each; 4, 4 and 10 values in 4 bits
    student = 22 * 4 + 2 * (16 + 4) + (2 + 4) + (2 + 4) + (5 + 8)
    assert found["summary"]["cache_bytes_per_token"] == {"teacher": 3 * 32 * 4, "student": student}
    assert found["plan"]["model"]["cache"]["bytes_per_token"] == student
    assert found["plan"]["model"]["cache"]["quantized"]["full"]["bytes_per_token"] == (22 + 32 + 18) * 4
    (tmp_path / "runs").rename(tmp_path / "before")
    manifest.write_text(text.replace("context: 32}", "context: 32, cache: full}", 1))
    whole = run(manifest)["summary"]
    assert whole["cache_bytes_per_token"]["student"] == (22 + 32 + 18) * 4
    assert whole["perplexity"]["teacher"] == found["summary"]["perplexity"]["teacher"]
    assert whole["perplexity"]["end"] != found["summary"]["perplexity"]["end"]


def test_a_cache_that_there_is_not() -> None:
    assert Evaluation().cache is None
    with pytest.raises(Exception, match=r"attention.cache: 'int3' does not fit"):
        model_of(GQA, ["int8", "int3", None])
