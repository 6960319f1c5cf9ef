"""Whole models: decoding through a cache, capturing, compiling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_standard.fans import Branching, Parallel, TopKRouter
from caramba_plugins_standard.generation import generate
from caramba_plugins_standard.layers import RMSNorm, SwiGLU
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.topologies import Cyclic, Nested, Recurrent, Residual
from caramba_plugins_standard.training.compiling import compile_blocks, uncompile
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.fx import GraphModule
from torch.nn import functional as F

from caramba_core.components import Layer
from caramba_core.nn.frame import Frame, Taps
from caramba_core.nn.language_model import LanguageModel

Make = Callable[..., LanguageModel]

ATTENTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 4},
    "window of one": {"window": 1},
    "biases": {"qkv_bias": True, "o_bias": True},
    "scale": {"scale": 0.9},
    "norms": {"qk_norm_eps": 1e-6},
    "no positions": {"rope": None},
    "yarn": {"rope": Rope(scaling="yarn", factor=4.0, original_max_position_embeddings=8)},
    "one head": {"n_heads": 1, "n_kv_heads": 1},
    "heads of their own": {"n_kv_heads": 4},
}


def decode(model: LanguageModel, tokens: Tensor, passes: list[int], capacity: int | None = None) -> Tensor:
    """Logits of tokens that arrive in several passes."""
    cache = model.new_cache(tokens.shape[0], capacity=capacity)
    parts, at = [], 0
    for count in passes:
        part = tokens[:, at : at + count]
        parts.append(model.logits(model.hidden(part, Frame.of(part, cache=cache))))
        at += count
    assert cache.length == at
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("changes", ATTENTIONS.values(), ids=ATTENTIONS)
@pytest.mark.parametrize("passes", [[11], [1] * 11, [4, 1, 6], [5, 5, 1], [1, 10]], ids=str)
@torch.no_grad()
def test_decoding_in_any_passes_is_the_full_forward(llama: Make, changes: dict[str, Any], passes: list[int]) -> None:
    model = llama(repeat=2, **changes)
    tokens = torch.randint(97, (3, 11))
    full = model(tokens)
    torch.testing.assert_close(decode(model, tokens, passes), full, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(decode(model, tokens, passes, capacity=11), full, rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    window=st.none() | st.integers(1, 12),
    passes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
)
@torch.no_grad()
def test_decoding_past_the_growth_of_the_cache(data: Any, window: int | None, passes: list[int]) -> None:
    model = _models[window] if window in _models else _models.setdefault(window, _build(window))
    tokens = torch.randint(97, (2, sum(passes)))
    torch.testing.assert_close(decode(model, tokens, passes), model(tokens), rtol=1e-12, atol=1e-12)


_models: dict[int | None, LanguageModel] = {}


def _build(window: int | None) -> LanguageModel:
    from caramba_plugins_standard.gqa import GroupedQueryAttention
    from caramba_plugins_standard.layers import LinearHead, TokenEmbedder

    from caramba_core.components import Model
    from caramba_core.lowering import lower
    from caramba_core.nn.build import build

    attention = GroupedQueryAttention(n_heads=2, n_kv_heads=1, head_dim=4, rope=Rope(), window=window)
    embedder = TokenEmbedder(vocab_size=97, d_model=8, init_std=1.0)
    model = Model(
        head=LinearHead(), embedder=embedder, tied_embeddings=True, topology=Residual(layers=(RMSNorm(), attention))
    )
    return build(lower(model), dtype=torch.float64, seed=0)


@torch.no_grad()
def test_every_application_decodes_with_a_cache_of_its_own(
    model_of: Make, block: Callable[..., tuple[Layer, ...]], attention: Callable[..., Layer]
) -> None:
    inner = Recurrent(times=2, layers=block(), inject=True)
    model = model_of(
        Recurrent(name="outer", times=3, layers=(*block(), inner)),
        Cyclic(times=5, layers=(Residual(layers=(RMSNorm(), attention())), Residual(layers=(RMSNorm(), attention())))),
        RMSNorm(),
    )
    counts = {name: node.applications for name, node in model.graph.attentions().items()}
    assert counts == {
        "model.outer.body.attention": 3,
        "model.outer.body.recurrent.body.attention": 6,
        "model.cyclic.0.attention": 3,
        "model.cyclic.1.attention": 2,
    }
    tokens = torch.randint(97, (2, 9))
    torch.testing.assert_close(decode(model, tokens, [4, 1, 4]), model(tokens), rtol=1e-12, atol=1e-12)
    cache = model.new_cache(2, capacity=9)
    values = sum(
        count * entry.values * 2 * 9
        for name, count in counts.items()
        for entry in model.graph.attentions()[name].config.cache_spec(24).values()  # type: ignore[attr-defined]
    )
    assert cache.bytes == values * 8


@torch.no_grad()
def test_truncated_tokens_are_forgotten(llama: Make) -> None:
    model = llama(repeat=2)
    tokens = torch.randint(97, (2, 8))
    cache = model.new_cache(2)
    model.hidden(tokens, Frame.of(tokens, cache=cache))
    cache.truncate(5)
    again = model.hidden(tokens[:, 5:], Frame.of(tokens[:, 5:], cache=cache))
    torch.testing.assert_close(again, model.hidden(tokens)[:, 5:], rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_generate_is_greedy(llama: Make) -> None:
    model = llama()
    tokens = torch.randint(97, (3, 4))
    expected = tokens
    for _ in range(6):
        expected = torch.cat([expected, model(expected)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generate(model, tokens, 6), expected)


@torch.no_grad()
def test_sequences_may_stand_at_positions_of_their_own(llama: Make) -> None:
    model = llama(repeat=2)
    tokens = torch.randint(97, (2, 6))
    shifted = model.hidden(tokens, Frame(positions=torch.stack([torch.arange(6), torch.arange(6) + 50])))
    torch.testing.assert_close(shifted, model.hidden(tokens), rtol=1e-10, atol=1e-10)  # only distances count


# ------------------------------------------------------------------------------------------------ capturing


def captured(model: LanguageModel, tokens: Tensor, names: list[str]) -> list[tuple[int, Tensor, Tensor]]:
    seen: list[tuple[int, Tensor, Tensor]] = []
    model.tap(names)
    model.hidden(tokens, Frame.of(tokens, taps=Taps(lambda index, x, y: seen.append((index, x, y)))))
    return seen


@pytest.mark.parametrize("compiled", [False, True])
@torch.no_grad()
def test_taps_see_what_the_nodes_read_and_give(llama: Make, compiled: bool) -> None:
    model = llama(repeat=3)
    names = [f"model.blocks.{index}.attention" for index in range(3)]
    tokens = torch.randint(97, (2, 7))
    wanted: list[tuple[Tensor, Tensor]] = []
    handles = [
        model.get_submodule(name.removeprefix("model.")).register_forward_hook(
            lambda _, inputs, output: wanted.append((inputs[0], output))
        )
        for name in names
    ]
    model(tokens)
    for handle in handles:
        handle.remove()
    if compiled:
        torch._dynamo.reset()
        compile_blocks(model, backend="eager")
    seen = captured(model, tokens, names)
    assert [index for index, _, _ in seen] == [0, 1, 2]
    for (_, x, y), (x_wanted, y_wanted) in zip(seen, wanted, strict=True):
        torch.testing.assert_close(x, x_wanted)
        torch.testing.assert_close(y, y_wanted)


@torch.no_grad()
def test_a_pair_is_handed_on_before_the_next_block_runs(llama: Make) -> None:
    model = llama(repeat=3)
    order: list[str] = []
    for index in range(3):
        model.get_submodule(f"blocks.{index}").register_forward_hook(lambda *_, i=index: order.append(f"ran {i}"))
    tokens = torch.randint(97, (1, 3))
    model.tap(["model.blocks.0.mlp", "model.blocks.2.mlp"])
    model.hidden(tokens, Frame.of(tokens, taps=Taps(lambda index, x, y: order.append(f"pair {index}"))))
    assert order == ["ran 0", "pair 0", "ran 1", "ran 2", "pair 1"]


@torch.no_grad()
def test_taps_of_a_recurrent_body_come_once_an_application(
    model_of: Make, block: Callable[..., tuple[Layer, ...]]
) -> None:
    model = model_of(Recurrent(times=3, layers=block()))
    seen = captured(model, torch.randint(97, (1, 4)), ["model.recurrent.body.mlp"])
    assert [index for index, _, _ in seen] == [0, 1, 2]


def test_tapping_nothing_that_exists_is_an_error(llama: Make) -> None:
    with pytest.raises(AssertionError, match=r"blocks\.7"):
        llama().tap(["model.blocks.7.attention"])


# ------------------------------------------------------------------------------------------------ compiling


@pytest.mark.parametrize("changes", ATTENTIONS.values(), ids=ATTENTIONS)
def test_blocks_compile_whole_and_share_one_graph(llama: Make, changes: dict[str, Any]) -> None:
    torch._dynamo.reset()
    model = llama(repeat=4, **changes)
    tokens = torch.randint(97, (2, 9))
    expected = model(tokens)
    wanted = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    counter = CompileCounter()
    compile_blocks(model, backend=counter)
    found = model(tokens)
    got = torch.autograd.grad(found.square().sum(), list(model.parameters()))
    assert counter.frame_count == 1, "every block compiled anew"
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(got, wanted)


def test_under_autocast_compiled_blocks_join_products(llama: Make) -> None:
    torch._dynamo.reset()
    model = llama(repeat=2, dtype=torch.float32)
    tokens = torch.randint(97, (2, 9))
    products: list[int] = []

    def backend(graph: GraphModule, _: object) -> GraphModule:
        products.append(sum(node.target is F.linear for node in graph.graph.nodes))
        return graph

    def step() -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(tokens).float().square().mean()
        return loss, *torch.autograd.grad(loss, list(model.parameters()))

    wanted = step()
    compile_blocks(model, backend=backend)
    for found, expected in zip(step(), wanted, strict=True):
        assert (found - expected).norm() <= 0.02 * expected.norm()
    assert products == [4], "queries, keys and values; the output; gate and up; down"


@torch._dynamo.config.patch(recompile_limit=4)
def test_more_kinds_of_blocks_than_torch_would_compile(model_of: Make, block: Callable[..., tuple[Layer, ...]]) -> None:
    torch._dynamo.reset()
    model = model_of(Nested(name="blocks", repeat=7, each={"mlp.d_ff": tuple(range(8, 15))}, layers=block()))
    tokens = torch.randint(97, (2, 9))
    expected = model(tokens)
    counter = CompileCounter()
    assert compile_blocks(model, backend=counter) == ()
    torch.testing.assert_close(model(tokens), expected)
    assert 1 < counter.frame_count <= 7


def test_of_many_sizes_by_layer_few_graphs_are_made(model_of: Make, block: Callable[..., tuple[Layer, ...]]) -> None:
    torch._dynamo.reset()
    model = model_of(
        Nested(name="alike", repeat=3, layers=block()),
        Nested(name="blocks", repeat=10, each={"mlp.d_ff": tuple(range(8, 18))}, layers=block()),
    )
    tokens = torch.randint(97, (2, 9))
    expected = model(tokens)
    wanted = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    counter = CompileCounter()
    assert compile_blocks(model, backend=counter) == tuple(f"blocks.{index}.mlp" for index in range(10))
    found = model(tokens)
    got = torch.autograd.grad(found.square().sum(), list(model.parameters()))
    assert counter.frame_count == 5, "the block of which there are three, attention, norm, and two of the MLPs"
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(got, wanted)


def test_attention_sizes_by_layer_become_symbols(model_of: Make) -> None:
    torch._dynamo.reset()
    attention = DecoupledBottleneckAttention(
        n_heads=2, n_kv_heads=1, head_dim=16, sem_dim=8, geo_dim=8, v_dim=8, rope=Rope()
    )
    sizes = {"attention.sem_dim": tuple(range(5, 14)), "attention.v_dim": tuple(range(7, 25, 2))}
    block = (Residual(layers=(RMSNorm(), attention)), Residual(layers=(RMSNorm(), SwiGLU(d_ff=8))))
    model = model_of(Nested(name="blocks", repeat=9, each=sizes, layers=block))
    tokens = torch.randint(97, (2, 9))
    expected = model(tokens)
    wanted = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    counter = CompileCounter()
    assert compile_blocks(model, backend=counter) == tuple(f"blocks.{index}.attention" for index in range(9))
    found = model(tokens)
    got = torch.autograd.grad(found.square().sum(), list(model.parameters()))
    assert counter.frame_count <= 2 + 5, "norm, MLP, and of nine attentions those that are padded in other ways"
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(got, wanted)
    uncompile(model)
    compiled = counter.frame_count
    assert torch.equal(model(tokens), expected)
    assert counter.frame_count == compiled


def test_other_lengths_compile_once_more_only(llama: Make) -> None:
    torch._dynamo.reset()
    model = llama(repeat=3)
    counter = CompileCounter()
    compile_blocks(model, backend=counter)
    for length in (9, 12, 5, 30):
        tokens = torch.randint(97, (2, length))
        model(tokens)
    assert counter.frame_count == 2, "once for the first length, once for all others"


def test_repeated_applications_compile_once(model_of: Make, block: Callable[..., tuple[Layer, ...]]) -> None:
    torch._dynamo.reset()
    model = model_of(Recurrent(times=3, layers=block(), inject=True), Nested(repeat=2, layers=block()), RMSNorm())
    tokens = torch.randint(97, (2, 9))
    expected = model(tokens)
    counter = CompileCounter()
    compile_blocks(model, backend=counter)
    torch.testing.assert_close(model(tokens), expected)
    assert counter.frame_count == 1


def test_topologies_inside_a_block_compile_with_it(
    model_of: Make, block: Callable[..., tuple[Layer, ...]], attention: Callable[..., Layer]
) -> None:
    torch._dynamo.reset()
    inner = (
        Recurrent(times=2, layers=block(), inject=True),
        Cyclic(times=3, layers=(Residual(layers=(RMSNorm(), attention())), Residual(layers=(RMSNorm(), attention())))),
        Parallel(layers=(attention(), RMSNorm()), combine="concatenate"),
        Branching(layers=(attention(), RMSNorm()), router=TopKRouter(k=1, init_std=1.0)),
    )
    model = model_of(Nested(name="blocks", repeat=2, layers=inner))
    tokens = torch.randint(97, (2, 9))
    expected = model(tokens)
    wanted = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    counter = CompileCounter()
    compile_blocks(model, backend=counter)
    found = model(tokens)
    got = torch.autograd.grad(found.square().sum(), list(model.parameters()))
    assert counter.frame_count == 1
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(got, wanted)
