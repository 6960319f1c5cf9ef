"""SmolLM2-135M-Instruct, the GGUF that ``make weights`` fetches, opened from Python."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import caramba

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.real_model
def test_a_real_checkpoint_reads_and_writes_text() -> None:
    path = Path(__file__).parents[2] / os.environ.get("CARAMBA_WEIGHTS", ".demo") / NAME
    if not path.is_file():
        pytest.skip(f"{path} is not there; make weights fetches it")
    model = caramba.open(path, device="cpu")
    assert model.generate("The capital of France is", max_new_tokens=1) == "The capital of France is Paris"
    text = "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want."
    shuffled = " ".join(sorted(text.split()))
    assert 1 < model.perplexity(text) < model.perplexity(shuffled) / 5
