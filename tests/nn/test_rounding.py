"""Training passes with rounded keys and values: what a quantized cache reads, and gradients straight through."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_mla.attention import MultiHeadLatentAttention
from caramba_plugins_sliding_window.attention import SlidingWindowAttention
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.layers import LinearHead, RMSNorm, TokenEmbedder
from caramba_plugins_standard.marks import BEGINS
from caramba_plugins_standard.quantized import Full, Int4, Int8
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.topologies import Nested, Residual, Stacked
from caramba_plugins_standard.training.batch import Batch, batches_of
from caramba_plugins_standard.training.compiling import compile_blocks, uncompile
from caramba_plugins_standard.training.rounding import RoundingCache, rounding_cache
from torch.nn import functional as F

from caramba_core.components import Attention, Model, Storage, evolve
from caramba_core.lowering import lower
from caramba_core.nn.build import build
from caramba_core.nn.cache import Cache
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel

HEADS: dict[str, Any] = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "rope": Rope(theta=100.0)}
DBA: dict[str, Any] = {**HEADS, "sem_dim": 8, "geo_dim": 16, "v_dim": 12}
ATTENTIONS: dict[str, Attention] = {
    "gqa": GroupedQueryAttention(**HEADS),
    "gqa with a window": GroupedQueryAttention(**HEADS, window=5),
    "dba": DecoupledBottleneckAttention(**DBA),
    "dba with null attention": DecoupledBottleneckAttention(**DBA, null=True),
    "dba with a joint latent": DecoupledBottleneckAttention(**{**DBA, "sem_dim": 0, "geo_dim": 8}, latent="joint"),
    "mla": MultiHeadLatentAttention(**HEADS, rank=12, rope_dim=4),
    "sliding window": SlidingWindowAttention(**HEADS, window=4, sinks=2, sink_positions="text"),
    "sliding window with near sinks": SlidingWindowAttention(**HEADS, window=4, sinks=2),
}
BLOCKS = 3


def model_of(attention: Attention) -> LanguageModel:
    block = Nested(name="blocks", repeat=BLOCKS, layers=(Residual(layers=(RMSNorm(), attention)),))
    embedder = TokenEmbedder(vocab_size=16, d_model=32)
    model = build(
        lower(Model(embedder=embedder, topology=Stacked(layers=(block, RMSNorm())), head=LinearHead())), seed=1
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def words(batch: int = 2, tokens: int = 23) -> torch.Tensor:
    return torch.randint(16, (batch, tokens + 1), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("storage", [Int8(), Int4(), Int4(block=5)], ids=["int8", "int4", "int4 in blocks of 5"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_pass_reads_what_a_quantized_cache_returns(name: str, storage: Storage) -> None:
    model, tokens = model_of(ATTENTIONS[name]), words()
    batch = Batch(tokens=tokens, rounding=RoundingCache(model.graph, storage))
    found = model(batch.inputs, batch.frame(model))
    cache = model.new_cache(len(tokens), storage=storage)
    wanted = model(batch.inputs, Frame.of(batch.inputs, cache=cache))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert (found - model(batch.inputs)).abs().max() > 1e-4
    found.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_gradients_pass_as_if_nothing_was_rounded() -> None:
    model, tokens = model_of(ATTENTIONS["gqa"]), words(tokens=9)
    module = next(part for part in model.modules() if getattr(part, "config", None) == ATTENTIONS["gqa"])
    cache, x = RoundingCache(model.graph, Int4()), torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(3))
    weights = list(module.parameters())
    frame = Frame.of(tokens[:, :-1], cache=cache)
    found = torch.autograd.grad(module(x, frame).square().sum(), weights)

    query, key, value = module.project(x)
    query, key = module._turn(query, key, frame)
    layer = model.new_cache(2, storage=Int4()).layer(module.site)
    key, value = (
        each + (layer.round_trip(name, each.transpose(1, 2)).transpose(1, 2) - each).detach()
        for name, each in (("key", key), ("value", value))
    )
    scores = query @ key.repeat_interleave(2, dim=1).transpose(2, 3) * module.multiplier
    ahead = torch.ones(9, 9).triu(1).bool()
    mixed = scores.masked_fill(ahead, -torch.inf).softmax(-1) @ value.repeat_interleave(2, dim=1)
    output = F.linear(mixed.transpose(1, 2).flatten(2), module.o_proj)
    wanted = torch.autograd.grad(output.square().sum(), weights)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_documents_stay_apart(name: str) -> None:
    model, tokens = model_of(ATTENTIONS[name]), words(batch=1)
    cut, marked = 11, tokens.clone()
    marked[:, [0, cut]] |= BEGINS
    cache = RoundingCache(model.graph, Int4())
    (batch,) = batches_of(marked[None], marked=True, rounding=cache)
    found = model(batch.inputs, batch.frame(model))
    for part in (slice(0, cut), slice(cut, tokens.shape[1] - 1)):
        alone = model(tokens[:, part], Frame.of(tokens[:, part], cache=cache))
        torch.testing.assert_close(found[:, part], alone, rtol=0, atol=1e-5)


def test_a_teacher_is_not_rounded() -> None:
    student, teacher = (model_of(ATTENTIONS[name]) for name in ("dba", "gqa"))
    batch = Batch(tokens=words(), rounding=RoundingCache(student.graph, Int4()))
    assert batch.frame(teacher).cache is None
    assert batch.frame(student).cache is batch.rounding


def compiled_graphs(model: LanguageModel, batch: Batch) -> int:
    """How many a model takes, compiled by blocks, for the same logits."""
    wanted = model(batch.inputs, batch.frame(model))
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compile_blocks(model, backend=backend)  # type: ignore[arg-type]
    torch.testing.assert_close(model(batch.inputs, batch.frame(model)), wanted, rtol=0, atol=1e-5)
    uncompile(model)
    return len(graphs)


def test_equal_blocks_share_one_compiled_graph() -> None:
    model = model_of(ATTENTIONS["dba with a joint latent"])
    assert compiled_graphs(model, Batch(tokens=words(), rounding=RoundingCache(model.graph, Int4()))) == 1


def test_blocks_of_two_kinds_are_two_compiled_graphs() -> None:
    window, dba = (
        evolve(ATTENTIONS["sliding window"], cache=Int8()),
        evolve(ATTENTIONS["dba with a joint latent"], cache=Int4()),
    )
    kinds = [
        Nested(name=f"blocks_{n}", layers=(Residual(layers=(RMSNorm(), a)),)) for n, a in enumerate([window, dba] * 2)
    ]
    embedder = TokenEmbedder(vocab_size=16, d_model=32)
    model = build(lower(Model(embedder=embedder, topology=Stacked(layers=tuple(kinds)), head=LinearHead())), seed=1)
    tokens = words()
    batch = Batch(tokens=tokens, rounding=rounding_cache(model.graph, None))
    wanted = model(batch.inputs, batch.frame(model))
    torch.testing.assert_close(
        wanted, model(batch.inputs, Frame.of(batch.inputs, cache=model.new_cache(len(tokens)))), rtol=0, atol=1e-6
    )
    assert compiled_graphs(model, batch) == 2


@pytest.mark.parametrize("name", ATTENTIONS)
def test_autocast_on_a_cpu_takes_rounded_caches(name: str) -> None:
    """Which holds scales in float16, a type that it refuses to join with others."""
    model, tokens = model_of(ATTENTIONS[name]), words()[:, :-1]
    cache = Cache(model.graph, batch=len(tokens), dtype=torch.bfloat16, storage=Int8())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = [model(part, Frame.of(part, cache=cache)) for part in tokens.split(9, dim=1)]
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(found, dim=1).float(), model(tokens), rtol=0, atol=0.05)


def test_an_attention_says_its_own_storage() -> None:
    kept, rounded = ATTENTIONS["gqa"], evolve(ATTENTIONS["gqa"], cache=Int4())
    layers = (Residual(layers=(RMSNorm(), kept)), Residual(layers=(RMSNorm(), rounded)))
    embedder = TokenEmbedder(vocab_size=16, d_model=32)
    model = build(lower(Model(embedder=embedder, topology=Stacked(layers=layers), head=LinearHead())), seed=1)
    cache = rounding_cache(model.graph, None)
    assert cache is not None
    first, second = (cache.layer(name) for name in model.graph.attentions())
    x = torch.randn(1, 3, 2, 8)
    assert first.extend(key=x, value=x)["key"] is x
    assert second.extend(key=x, value=x)["key"].sub(x).abs().max() > 0.01
    assert rounding_cache(model_of(kept).graph, None) is None
    assert rounding_cache(model_of(evolve(kept, cache=Full())).graph, None) is None
    assert rounding_cache(model.graph, Full()) is None
