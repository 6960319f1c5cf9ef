"""Prompts of unequal lengths in one batch continue as each does alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caramba_plugins_standard.generation import generate, generate_each
from caramba_plugins_standard.quantized import Int4, Int8
from hypothesis import given, settings
from hypothesis import strategies as st

from caramba_core.components import Storage
from caramba_core.errors import InputError
from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_core.nn.build import build
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel

GQA: dict[str, Any] = {"type": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "rope": {"theta": 50.0}}
DBA: dict[str, Any] = {**GQA, "type": "dba", "sem_dim": 5, "geo_dim": 8, "v_dim": 7}
ATTENTIONS: dict[str, dict[str, Any]] = {
    "gqa": GQA,
    "gqa window": {**GQA, "window": 4},
    "dba": DBA,
    "dba a head": {**DBA, "sem_dim": 6, "v_dim": 8, "k_layout": "per_head", "v_layout": "per_head", "v_bias": True},
    "dba null window": {**DBA, "null": True, "window": 4},
    "dba gate": {**DBA, "gate": "dynamic", "temperature": True},
}


def model_of(attention: dict[str, Any]) -> LanguageModel:
    block = [{"type": "residual", "layers": [{"type": "rms_norm"}, attention]}]
    described = {
        "tied_embeddings": True,
        "embedder": {"type": "token", "vocab_size": 23, "d_model": 16},
        "topology": {"type": "nested", "repeat": 2, "name": "blocks", "layers": block},
    }
    model = build(lower(structure_model(described)), seed=3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
    return model


MODELS = {name: model_of(attention) for name, attention in ATTENTIONS.items()}


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)),
    prompts=st.lists(st.lists(st.integers(0, 22), min_size=1, max_size=9), min_size=1, max_size=4),
    storage=st.sampled_from((None, Int8(), Int4(block=5))),
)
def test_together_as_alone(name: str, prompts: list[list[int]], storage: Storage | None) -> None:
    model = MODELS[name]
    together = generate_each(model, prompts, 6, storage=storage)
    assert [len(out) for out in together] == [len(prompt) + 6 for prompt in prompts]
    for prompt, out in zip(prompts, together, strict=True):
        alone = generate(model, torch.tensor([prompt]), 6, storage=storage)[0].tolist()
        assert out == alone


def test_positions_count_from_each_start() -> None:
    frame = Frame.of(torch.zeros(2, 4), starts=torch.tensor([0, 2]))
    assert frame.positions.tolist() == [[0, 1, 2, 3], [0, 0, 0, 1]]
    hidden = frame.hidden_keys(0, 4)
    assert hidden is not None
    assert not hidden[0].any()
    assert hidden[1].tolist() == [[c < 2 and c != r for c in range(4)] for r in range(4)]


@pytest.mark.parametrize(
    ("attention", "name"),
    [
        ({**GQA, "type": "sliding_window", "window": 4, "sinks": 1}, "SlidingWindow"),
        ({**GQA, "rope": {"scaling": "dynamic", "factor": 2.0, "original_max_position_embeddings": 8}}, "GroupedQuery"),
    ],
    ids=["sinks", "dynamic rope"],
)
def test_attentions_that_cannot_say_so(attention: dict[str, Any], name: str) -> None:
    model = model_of(attention)
    with pytest.raises(InputError, match=rf"blocks\.0\.attention \({name}Attention\) takes no sequences of unequal"):
        generate_each(model, [[1, 2, 3], [4]], 2)
    assert len(generate_each(model, [[1, 2, 3], [4, 5, 6]], 2)[0]) == 5
