"""Choosing tokens: the processors equal transformers' on the same logits, and draws have the right frequencies."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import pytest
import torch
from caramba_plugins_standard.generation import generate, generate_each
from caramba_plugins_standard.modes import Sampling
from caramba_plugins_standard.sampling import Draws, Sampler, draw, process, tokens_seen
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel

V = 37

SETTINGS = st.builds(
    Sampling,
    temperature=st.none() | st.sampled_from((1.0, 0.3, 0.7, 1.9)) | st.floats(0.05, 5.0),
    top_k=st.none() | st.integers(1, V + 3),
    top_p=st.none() | st.sampled_from((0.0, 0.5, 0.9, 1.0)) | st.floats(0.0, 1.0),
    min_p=st.none() | st.sampled_from((0.0, 0.05, 1.0)) | st.floats(0.0, 1.0),
    repetition_penalty=st.none() | st.floats(0.5, 2.0),
)


@functools.cache
def transformers_model() -> Any:
    transformers = importlib.import_module("transformers")
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    return transformers.LlamaForCausalLM(config)


def transformers_processors(sampling: Sampling, starts: Tensor) -> Any:
    """What transformers' ``generate`` applies, by its own choice and order."""
    model = transformers_model()
    generation = importlib.import_module("transformers").GenerationConfig(
        do_sample=not sampling.greedy,
        temperature=1.0 if sampling.temperature is None else sampling.temperature,
        top_k=0 if sampling.top_k is None else sampling.top_k,
        top_p=1.0 if sampling.top_p is None else sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=1.0 if sampling.repetition_penalty is None else sampling.repetition_penalty,
    )
    mask = (torch.arange(6) >= starts[:, None]).long()
    return model._get_logits_processor(generation, input_ids_seq_length=6, model_kwargs={"attention_mask": mask})


def drawn_logits(seed: int, *, ties: bool, scale: float) -> Tensor:
    logits = torch.randn(3, V, generator=torch.Generator().manual_seed(seed)) * scale
    return logits.round() if ties else logits


@settings(max_examples=150, deadline=None)
@given(sampling=SETTINGS, seed=st.integers(0, 10**6), ties=st.booleans(), scale=st.sampled_from((0.1, 1.0, 6.0, 40.0)))
def test_processed_as_in_transformers(sampling: Sampling, seed: int, ties: bool, scale: float) -> None:
    logits = drawn_logits(seed, ties=ties, scale=scale)
    tokens = torch.randint(0, V, (3, 6), generator=torch.Generator().manual_seed(seed + 1))
    starts = torch.tensor([0, 2, 5])
    expected = transformers_processors(sampling, starts)(tokens, logits.clone())
    assert torch.equal(process(logits, sampling, tokens_seen(tokens, V, starts)), expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 4))
def test_a_draw_never_takes_what_is_ruled_out(seed: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(rows, V, generator=generator) * (torch.rand(rows, V, generator=generator) > 0.8)
    probabilities[:, seed % V] += 1e-30
    for uniform in (0.0, 0.5, 1 - 2.0**-53):
        chosen = draw(probabilities, torch.full((rows,), uniform, dtype=torch.float64))
        assert (probabilities.gather(1, chosen[:, None]) > 0).all()


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """The p-value of Pearson's test, over the tokens that are expected five times or more and the rest as one."""
    expected = probabilities.double() * counts.sum()
    often = expected >= 5
    observed = torch.cat([counts[often].double(), counts[~often].sum()[None].double()])
    wanted = torch.cat([expected[often], expected[~often].sum()[None]])
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    freedom = torch.tensor((len(wanted) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2)) if len(wanted) > 1 else 1.0


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.6, top_k=20),
        Sampling(temperature=1.4, top_p=0.85),
        Sampling(min_p=0.1),
        Sampling(temperature=0.9, top_k=25, top_p=0.95, min_p=0.02, repetition_penalty=1.3),
    ],
    ids=["temperature", "top_k", "top_p", "min_p", "all"],
)
def test_frequencies_are_those_of_transformers(sampling: Sampling) -> None:
    """Draws against the probabilities that transformers draws from, and against transformers' own draws."""
    rows, steps = 400, 100
    logits = drawn_logits(7, ties=False, scale=1.5)[:1]
    tokens = torch.tensor([[1, 2, 3, 1, 5, 8]])
    theirs = transformers_processors(sampling, torch.tensor([0]))(tokens, logits.clone()).softmax(dim=-1)[0]
    sampler = Sampler(sampling, range(rows), tokens.expand(rows, -1), V)
    seen = sampler.seen
    counts = torch.zeros(V, dtype=torch.int64)
    for _ in range(steps):
        sampler.seen = seen
        counts += torch.bincount(sampler(logits.expand(rows, -1)), minlength=V)
    assert not counts[theirs == 0].any()
    assert chi_square(counts, theirs) > 1e-3
    drawn = torch.multinomial(theirs, rows * steps, replacement=True, generator=torch.Generator().manual_seed(1))
    other = torch.bincount(drawn, minlength=V)
    both = (counts + other).double() / (2 * rows * steps)  # two samples against their mean, at twice the freedom
    assert chi_square(counts, both) > 1e-3 and chi_square(other, both) > 1e-3
    assert chi_square(counts.roll(1), theirs) < 1e-6, "the test would not notice"


def test_a_row_draws_from_its_own_seed() -> None:
    device = torch.device("cpu")
    together, alone = Draws([4, 9], device), Draws([9], device)
    for _ in range(200):
        assert together.next()[1] == alone.next()[0]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    attention = {"type": "gqa", "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "rope": {"theta": 100.0}}
    described = {
        "tied_embeddings": True,
        "embedder": {"type": "token", "vocab_size": V, "d_model": 16},
        "topology": {"type": "nested", "repeat": 2, "layers": [{"type": "residual", "layers": [attention]}]},
    }
    return build(lower(structure_model(described)), seed=3, dtype=torch.float64)


def test_what_a_row_says_does_not_depend_on_its_batch(model: LanguageModel) -> None:
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [4]]
    sampling = Sampling(temperature=1.5, top_p=0.9, repetition_penalty=1.2)
    together = generate_each(model, prompts, 80, sampling=sampling, seed=11)
    for row, prompt in enumerate(prompts):
        alone = generate(model, torch.tensor([prompt]), 80, sampling=sampling, seed=11 + row)
        assert together[row] == alone[0].tolist()
    assert together[1] != together[3]
    assert together == generate_each(model, prompts, 80, sampling=sampling, seed=11)


def test_a_penalty_alone_stays_greedy(model: LanguageModel) -> None:
    tokens = torch.tensor([[3, 1, 4]])
    plain, penalized = (generate(model, tokens, 30, sampling=Sampling(repetition_penalty=p)) for p in (1.0, 8.0))
    assert torch.equal(plain, generate(model, tokens, 30))
    assert torch.equal(plain, generate(model, tokens, 30, sampling=Sampling(temperature=0.0, top_k=3)))
    assert len(set(penalized[0].tolist())) > len(set(plain[0].tolist()))
