"""Perplexity through a cache in few bits: that of decoding, in one pass; and what a run says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from caramba_plugins_standard.perplexity import measure
from caramba_plugins_standard.quantized import Blocks, Int4, Int8
from caramba_plugins_standard.training.compiling import compile_blocks

from caramba_core.cli import main
from caramba_core.components import evolve
from caramba_core.datasets import Tokens
from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_core.modes import Evaluation
from caramba_core.nn.build import build
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel

from .models import TINY
from .workspace import make_workspace

GQA = {"type": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "rope": {"theta": 100.0}}
ATTENTIONS: dict[str, dict[str, Any]] = {
    "gqa": GQA,
    "gqa window": {**GQA, "window": 5},
    "dba": {**GQA, "type": "dba", "sem_dim": 5, "geo_dim": 8, "v_dim": 7},
    "dba null window": {**GQA, "type": "dba", "sem_dim": 5, "geo_dim": 8, "v_dim": 7, "null": True, "window": 6},
    "mla": {**GQA, "type": "mla", "rank": 9, "rope_dim": 4},
}
IDS = np.random.default_rng(0).integers(0, 40, size=3 * 20)
TOKENS = Tokens(ids=IDS, tokenizer=None, origin="drawn")
FULL = Evaluation(context=20, windows=3, batch_size=2)


def model_of(attention: dict[str, Any]) -> LanguageModel:
    """In float64, with weights large enough for attention to matter."""
    described = json.loads(json.dumps(TINY))
    described["topology"]["layers"][0]["layers"][0]["layers"][1] = attention
    model = build(lower(structure_model(described)), seed=1, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)
    return model.requires_grad_(False)


def decoded(model: LanguageModel, settings: Evaluation) -> torch.Tensor:
    """Likelihoods of decoding a token at a time."""
    windows = torch.from_numpy(IDS.reshape(3, 20))
    cache = model.new_cache(3, storage=settings.cache)
    logits = [model(windows[:, i : i + 1], Frame.of(windows[:, i : i + 1], cache=cache)) for i in range(20)]
    scores = torch.cat(logits, dim=1)[:, :-1].flatten(0, 1)
    return F.cross_entropy(scores, windows[:, 1:].flatten(), reduction="none").view(3, -1)


@pytest.mark.parametrize("storage", [Int8(block=4), Int4(block=4)], ids=["int8", "int4"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_one_pass_measures_what_decoding_gives(name: str, storage: Blocks) -> None:
    model = model_of(ATTENTIONS[name])
    settings = evolve(FULL, cache=storage)
    found = measure(model, TOKENS, settings).nll
    np.testing.assert_allclose(found, decoded(model, settings).numpy(), rtol=0, atol=1e-5)
    plain = measure(model, TOKENS, FULL).nll
    lost = float(np.abs(found - plain).mean())
    assert lost > 1e-5
    if storage.bits == 4:
        finer = float(np.abs(measure(model, TOKENS, evolve(settings, cache=Int8(block=4))).nll - plain).mean())
        assert lost > 4 * finer


def test_compiled_blocks_are_measured_as_they_are() -> None:
    model = model_of(GQA)
    settings = evolve(FULL, cache=Int8())
    wanted = measure(model, TOKENS, settings).nll
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_blocks(model, backend="eager")
    np.testing.assert_allclose(measure(model, TOKENS, settings).nll, wanted, rtol=0, atol=1e-6)
    assert not torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


def run(manifest: Path) -> dict[str, dict[str, Any]]:
    with pytest.raises(SystemExit) as ended:
        main(["run", str(manifest), "--output", str(manifest.parent / "runs"), "--run", "convert"])
    assert not ended.value.code
    folder = manifest.parent / "runs" / "small" / "half" / "convert"
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def test_a_run_with_a_rounded_cache(tmp_path: Path) -> None:
    """The student is measured through it, the teacher it is compared with is not; bytes are those that are held."""
    manifest = make_workspace(tmp_path)
    full = run(manifest)
    rounding = "eval: {windows: 4, context: 32, cache: {type: int4, block: 8}}"
    manifest.write_text(manifest.read_text().replace("eval: {windows: 4, context: 32}", rounding))
    (tmp_path / "runs").rename(tmp_path / "before")
    rounded = run(manifest)
    assert rounded["perplexity"]["teacher"] == full["perplexity"]["teacher"]
    assert rounded["perplexity"]["start"] != full["perplexity"]["start"]
    assert rounded["perplexity"]["end"] != full["perplexity"]["end"]
    # geo 8: 4 bytes, one block; sem 4: 2 bytes, one block; values 10: 5 bytes, two blocks; a block 4 bytes
    student = 3 * (4 + 2 + 5 + 4 * (1 + 1 + 2))
    assert rounded["cache_bytes_per_token"] == {"teacher": 3 * 32 * 4, "student": student}
