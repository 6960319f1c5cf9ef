"""A stream of prompts through the rows of one cache: each is continued as it would be alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from caramba_plugins_standard.decoding import Rows
from caramba_plugins_standard.generation import Prompt, generate_each, generate_stream
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.layers import LinearHead, RMSNorm, TokenEmbedder
from caramba_plugins_standard.modes import Sampling
from caramba_plugins_standard.quantized import Int8
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.topologies import Residual, Stacked

from caramba_core.components import Model, component
from caramba_core.lowering import lower
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
V = 50


@component
class OfEqualLengths(GroupedQueryAttention):
    """One whose batches hold prompts of one length."""

    takes_starts: ClassVar[bool] = False


@component
class InPasses(OfEqualLengths):
    """One that takes no decode steps either."""

    takes_steps: ClassVar[bool] = False


def model_of(
    kind: type[GroupedQueryAttention] = GroupedQueryAttention, device: str = "cpu", **more: Any
) -> LanguageModel:
    attention = kind(n_heads=4, n_kv_heads=2, head_dim=16, rope=Rope(theta=100.0), **more)
    blocks = tuple(Residual(layers=(RMSNorm(), attention)) for _ in range(2))
    model = Model(embedder=TokenEmbedder(vocab_size=V, d_model=32), topology=Stacked(layers=blocks), head=LinearHead())
    return build(lower(model), seed=0).double().to(device).eval().requires_grad_(False)


def prompts_of(count: int) -> list[Prompt]:
    generator = torch.Generator().manual_seed(3)
    sizes = torch.randint(1, 12, (count, 2), generator=generator).tolist()
    ids = [torch.randint(V, (size,), generator=generator).tolist() for size, _ in sizes]
    return [Prompt(one, 3 * most, seed=7 + at) for at, (one, (_, most)) in enumerate(zip(ids, sizes, strict=True))]


def alone(model: LanguageModel, prompt: Prompt, sampling: Sampling, **settings: Any) -> list[int]:
    (out,) = generate_each(model, [prompt.ids], prompt.most, sampling=sampling, seed=[prompt.seed], **settings)
    return out[len(prompt.ids) :]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("kind", "more"),
    [(GroupedQueryAttention, {}), (GroupedQueryAttention, {"window": 5}), (OfEqualLengths, {}), (InPasses, {})],
    ids=["gqa", "window", "equal lengths", "passes"],
)
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_each_is_continued_as_alone(device: str, kind: type[GroupedQueryAttention], more: Any, batch_size: int) -> None:
    model, sampling = model_of(kind, device, **more), Sampling(temperature=1.0, repetition_penalty=1.3)
    prompts = prompts_of(23)
    found = list(generate_stream(model, prompts, batch_size, stops={1, 2}, sampling=sampling))
    assert found == [alone(model, prompt, sampling, stops={1, 2}) for prompt in prompts]
    assert len({len(new) for new in found}) > 5


def test_a_quantized_cache_and_greedy() -> None:
    model, prompts = model_of(), prompts_of(9)
    found = list(generate_stream(model, prompts, 4, storage=Int8()))
    assert [len(new) for new in found] == [prompt.most for prompt in prompts]
    assert found[0] == alone(model, prompts[0], Sampling(), storage=Int8())


def test_a_row_that_is_done_takes_the_next_prompt() -> None:
    """One long text beside short ones: passes of all rows are as many as the long one has tokens, and few more."""
    model, sizes = model_of(), list[int]()
    model.embedder.register_forward_hook(lambda _module, given, _out: sizes.append(given[0].numel()))
    prompts = [Prompt([5], 60), *(Prompt([number % V], 4) for number in range(40))]
    assert sum(len(new) for new in generate_stream(model, prompts, 4)) == 60 + 160
    assert sum(size == 4 for size in sizes) <= 60, "batches after one another would take 60 + 10 * 4 steps"


def test_prompts_are_asked_for_as_rows_get_free() -> None:
    asked = []

    def endless() -> Iterator[Prompt]:
        while True:
            asked.append(len(asked))
            yield Prompt([len(asked) % V], 2)

    stream = generate_stream(model_of(), endless(), 8)
    for _ in range(3):
        next(stream)
    assert len(asked) == 8
    assert list(generate_stream(model_of(), [], 8)) == []


@pytest.mark.parametrize("device", DEVICES)
def test_room_grows_in_the_middle_of_texts(device: str) -> None:
    model = model_of(device=device)
    prompts = [Prompt([3, 4], 30, 1), Prompt([5], 2, 2), Prompt(list(range(40)), 50, 3)]
    assert list(generate_stream(model, prompts, 2)) == [alone(model, prompt, Sampling()) for prompt in prompts]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_steps_are_recorded_once() -> None:
    model, passes = model_of(device="cuda"), list[int]()
    model.embedder.register_forward_hook(lambda *_: passes.append(1))
    prompts = [Prompt([number % V], 20) for number in range(64)]
    list(generate_stream(model, prompts, 8))
    assert len(passes) == 8 + 4  # prompts eight times, and a step that is warmed up thrice and recorded


def test_who_takes_no_steps_is_told() -> None:
    assert "takes no decode steps" in Rows(model_of(InPasses), 2, capacity=8).refused
