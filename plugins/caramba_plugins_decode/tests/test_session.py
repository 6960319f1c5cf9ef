"""A text that grows is computed once; drafts change nothing but the time."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from caramba_plugins_decode.session import Session, not_taken_back
from caramba_plugins_decode.source import Opening, TextModel, open_text_model
from caramba_plugins_decode.speculative import SpeculativeSession, require_pair
from caramba_plugins_standard.generation import generate
from caramba_plugins_standard.modes import Sampling
from caramba_plugins_standard.sampling import process

from caramba_core.errors import InputError
from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_core.nn.build import build

from .conftest import write_checkpoint

GREEDY = Sampling()
PROMPT = [5, 17, 200, 3, 3, 90]


class Tiny:
    """As much of a :class:`TextModel` as sessions use: a random model of few tokens."""

    def __init__(self, seed: int, vocabulary: int = 7, scale: float = 0.8, **attention: Any) -> None:
        described = {"type": "gqa", "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "rope": {"theta": 100.0}, **attention}
        layers = [{"type": "residual", "layers": [{"type": "rms_norm"}, described]}, {"type": "rms_norm"}]
        model = {"embedder": {"type": "token", "vocab_size": vocabulary, "d_model": 16}, "tied_embeddings": True}
        self.graph = lower(structure_model({**model, "topology": {"type": "stacked", "layers": layers}}))
        self.model = build(self.graph, seed=seed, dtype=torch.float64)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.model.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(noise * scale / 3)
        self.storage = None


def expected_of(model: TextModel, prompt: list[int], count: int) -> list[int]:
    return generate(model.model, torch.tensor([prompt]), count)[0, len(prompt) :].tolist()


def test_only_new_tokens_are_computed(opened: TextModel) -> None:
    session = Session(opened)
    first = list(session.tokens(PROMPT, 12, GREEDY, 0))
    assert first == expected_of(opened, PROMPT, 12)
    assert session.text.prefilled == 6
    assert session.text.held == [*PROMPT, *first[:-1]]
    longer = [*PROMPT, *first, 8, 9]
    session.text.prefill(longer, 0)
    assert session.text.prefilled == 6 + 3, "the last token of the answer was in no cache yet"
    assert list(session.tokens(longer, 20, GREEDY, 0)) == expected_of(opened, longer, 20)
    other = [*PROMPT[:4], 77, 78]
    before = session.text.prefilled
    assert list(session.tokens(other, 5, GREEDY, 0)) == expected_of(opened, other, 5)
    assert session.text.prefilled == before + 2
    assert list(session.tokens(other, 5, GREEDY, 0)) == expected_of(opened, other, 5)
    assert session.text.prefilled == before + 3, "logits need a token that is computed"


def test_an_answer_that_was_left(opened: TextModel) -> None:
    session = Session(opened)
    answer = session.tokens(PROMPT, 12, GREEDY, 0)
    begun = [next(answer) for _ in range(4)]
    answer.close()
    assert list(session.tokens([*PROMPT, *begun, 4], 6, GREEDY, 0)) == expected_of(opened, [*PROMPT, *begun, 4], 6)


@pytest.mark.parametrize("attention", [{"window": 4}, {"type": "mha"}], ids=["window", "mha"])
def test_what_cannot_be_taken_back_is_computed_again(attention: dict[str, Any]) -> None:
    if attention.get("type") == "mha":
        attention = {"type": "mha", "n_kv_heads": None}
    model: Any = Tiny(3, **attention) if "window" in attention else Tiny(3)
    session = Session(model)
    list(session.tokens([1, 2, 3], 10, GREEDY, 0))
    assert (not_taken_back(model.graph, 12) is None) == ("window" not in attention)
    assert list(session.tokens([1, 2, 4], 6, GREEDY, 0)) == expected_of(model, [1, 2, 4], 6)
    assert session.text.prefilled == 3 + (3 if "window" in attention else 1)


# ------------------------------------------------------------------------------------------------ drafts


@pytest.mark.parametrize("fixed", [None, 1, 2, 5, 16])
@pytest.mark.parametrize("penalty", [None, 1.6])
def test_greedy_is_the_model_s_own(fixed: int | None, penalty: float | None) -> None:
    for seed in range(3):
        model: Any = Tiny(seed, vocabulary=23)
        near: Any = Tiny(seed, vocabulary=23)
        with torch.no_grad():
            for parameter in near.model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)) * 0.15)
        sampling = Sampling(repetition_penalty=penalty)
        session = SpeculativeSession(model, near, fixed)
        for prompt in ([1, 2, 3], [1, 2, 3, 4], [5]):
            for count in (1, 2, 40):
                expected = generate(model.model, torch.tensor([prompt]), count, sampling=sampling)[0, len(prompt) :]
                assert list(session.tokens(prompt, count, sampling, 0)) == expected.tolist()
        assert 0 < session.accepted < session.drafted


def test_a_draft_that_is_the_model_is_accepted_whole() -> None:
    model: Any = Tiny(1)
    session = SpeculativeSession(model, model, 4)
    assert len(list(session.tokens([1, 2], 41, Sampling(temperature=1.0), 3))) == 41
    assert session.accepted == session.drafted == 32


def joint(model: Any, prompt: list[int], count: int, sampling: Sampling) -> torch.Tensor:
    """The probability of every text of ``count`` tokens behind a prompt, ``[V] * count``, from full passes."""
    vocabulary = model.graph.vocab_size
    texts, chances = torch.tensor([prompt]), torch.ones(1, dtype=torch.float64)
    for _ in range(count):
        with torch.no_grad():
            logits = model.model(texts)[:, -1]
        seen = torch.zeros(len(texts), vocabulary, dtype=torch.bool).scatter(1, texts, True)
        chances = (chances[:, None] * process(logits, sampling, seen).softmax(-1)).flatten()
        new = torch.arange(vocabulary).repeat(len(texts))[:, None]
        texts = torch.cat([texts.repeat_interleave(vocabulary, dim=0), new], dim=1)
    return chances


PROCESSED = Sampling(temperature=0.8, top_p=0.9, repetition_penalty=1.5)


@pytest.mark.parametrize(
    ("sampling", "k"),
    [(Sampling(temperature=1.0), 1), (Sampling(temperature=1.0), 3), (PROCESSED, 2)],
    ids=["plain, one drafted", "plain, three drafted", "processed, two drafted"],
)
def test_texts_are_distributed_as_the_model_s_own(sampling: Sampling, k: int) -> None:
    """Pearson's test of whole texts of three tokens against their exact probabilities."""
    model, other, prompt, count, trials = Tiny(0, 5), Tiny(4, 5), [1, 3], 3, 1500
    exact = joint(model, prompt, count, sampling)
    assert (exact - joint(other, prompt, count, sampling)).abs().sum() > 0.2, "the draft is another model"
    session: Any = SpeculativeSession(model, other, k)  # type: ignore[arg-type]
    found = torch.zeros_like(exact)
    for seed in range(trials):
        a, b, c = session.tokens(prompt, count, sampling, seed)
        found[(a * 5 + b) * 5 + c] += 1
    assert p_value(found, exact * trials) > 1e-3
    assert p_value(found, joint(other, prompt, count, sampling) * trials) < 1e-9, "the test would not notice"
    assert 0 < session.accepted < session.drafted


def p_value(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of Pearson's chi-square, over what is expected five times or more and the rest as one."""
    often = expected >= 5
    seen = torch.cat([found[often], found[~often].sum()[None]])
    wanted = torch.cat([expected[often], expected[~often].sum()[None]]).clamp(min=1e-9)
    statistic = ((seen - wanted) ** 2 / wanted).sum()
    return float(torch.special.gammaincc(torch.tensor((len(wanted) - 1) / 2).double(), statistic / 2))


def test_pairs_that_do_not_go_together(checkpoint: Path, tmp_path: Path) -> None:
    model = open_text_model(str(checkpoint), Opening(device="cpu"))
    other = write_checkpoint(tmp_path / "other", vocab_size=304)
    with pytest.raises(InputError, match=r"cannot draft for .*: they have other tokens"):
        require_pair(model, open_text_model(str(other), Opening()), 100)
    tokenizers = importlib.import_module("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    renamed = write_checkpoint(tmp_path / "renamed")
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.save(str(renamed / "tokenizer.json"))
    with pytest.raises(InputError, match="they have other tokens"):
        require_pair(model, open_text_model(str(renamed), Opening()), 100)
    window = Tiny(3, window=8)
    pair: Any = open_text_model(str(checkpoint), Opening())
    pair.graph, pair.tokenizer = window.graph, model.tokenizer
    same: Any = open_text_model(str(checkpoint), Opening())
    same.graph = Tiny(1).graph
    require_pair(same, pair, 8)
    with pytest.raises(InputError, match=r"blocks|attention \(GroupedQueryAttention\) cannot take tokens back"):
        require_pair(same, pair, 9)
