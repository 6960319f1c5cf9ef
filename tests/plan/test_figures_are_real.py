"""What a plan says, against the tensors and operations of the built model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from caramba_core.graph import Graph, local_name
from caramba_core.nn.build import build
from caramba_core.nn.cache import Cache
from caramba_core.plan import ModelPlan, plan_model
from caramba_core.plan.data import training_operations

from .shapes import ATTENTIONS, TOPOLOGIES, chain, graph_of, preset_graphs, presets, residual

CONTEXT = 13
GRAPHS: dict[str, Graph] = {
    **{name: graph_of(topology, tied="concatenate" not in name) for name, topology in TOPOLOGIES.items()},
    **{f"attention_{name}": graph_of(chain(residual(config)), tied=False) for name, config in ATTENTIONS.items()},
}


def check_tensors(graph: Graph, plan: ModelPlan, device: str) -> None:
    model = build(graph, device=device, dtype=getattr(torch, plan.dtype))
    parameters = dict(model.named_parameters())
    buffers = {name: t for name, t in model.state_dict().items() if name not in parameters}
    assert plan.total.parameters == sum(p.numel() for p in parameters.values())
    assert plan.total.buffers == sum(b.numel() for b in buffers.values())
    held = [*parameters.values(), *buffers.values()]
    assert plan.total.weight_bytes == sum(t.numel() * t.element_size() for t in held)
    named = {
        local_name(f"{node.node.name}.{name}"): weight.shape
        for node in plan.walk()
        for name, weight in node.weights.items()
    }
    assert named == {name: tuple(t.shape) for name, t in (parameters | buffers).items()}


def check_cache(graph: Graph, plan: ModelPlan) -> None:
    dtype = getattr(torch, plan.dtype)

    def held(tokens: int) -> int:
        return Cache(graph, batch=1, dtype=dtype, device="meta", capacity=tokens).bytes

    assert plan.total.context_bytes == held(plan.context)
    assert plan.total.cache_bytes == pytest.approx((held(plan.context) - held(0)) / plan.context)
    assert plan.total.state_bytes == held(0)
    assert plan.total.cache_values == sum(layer_values(graph))
    batch = Cache(graph, batch=3, dtype=dtype, device="meta", capacity=plan.context).bytes
    assert batch == 3 * plan.total.context_bytes


def layer_values(graph: Graph) -> list[int]:
    """Values per token of each entry that a cache holds per token, as they are read, application by application."""
    cache = Cache(graph, batch=1, dtype=torch.float32, device="meta", capacity=1)
    layers = [
        cache.layer(name, application)
        for name, node in graph.attentions().items()
        for application in range(node.applications)
    ]
    entries = [layer.entry(name) for layer in layers for name, entry in layer.spec.items() if entry.per_token]
    return [entry.decode(*entry.planes.values()).numel() for entry in entries]


class Counter(TorchDispatchMode):
    """Counts operations as torch's ``FlopCounterMode`` does, and remembers for which shapes it knows what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.known: dict[Any, tuple[Tensor, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        key = (func, *described(args), *described((kwargs or {}).items()))
        if key in self.known:
            like, operations = self.known[key]
            out = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="meta")
        else:
            out = func(*args, **kwargs or {})
            formula = flop_registry.get(func._overloadpacket)
            operations = formula(*args, **kwargs or {}, out_val=out) if formula else 0
            if isinstance(out, Tensor) and not func._schema.is_mutable:
                self.known[key] = out, operations
        self.operations += operations
        return out


def described(values: Iterable[Any]) -> tuple[Any, ...]:
    """Arguments of an operator as far as they matter on the meta device."""
    return tuple(
        (value.shape, value.stride(), value.dtype)
        if isinstance(value, Tensor)
        else described(value)
        if isinstance(value, list | tuple)
        else (type(value), value)
        for value in values
    )


def counted(graph: Graph, tokens: int) -> tuple[int, int]:
    """Operations of a forward pass, and of that with its backward pass, over one sequence."""
    model = build(graph, device="meta")
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    with Counter() as counter, sdpa_kernel(SDPBackend.MATH):
        logits = model(ids)
        forward = counter.operations
        logits.sum().backward()
    return forward, counter.operations


def check_operations(graph: Graph, plan: ModelPlan) -> None:
    forward, both = counted(graph, plan.context)
    assert plan.total.operations == pytest.approx(forward, rel=0.01)
    assert training_operations(plan) == pytest.approx(both, rel=0.01)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", GRAPHS)
def test_tensors(name: str, dtype: str) -> None:
    check_tensors(GRAPHS[name], plan_model(GRAPHS[name], context=CONTEXT, dtype=dtype), "cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", GRAPHS)
def test_cache(name: str, dtype: str) -> None:
    check_cache(GRAPHS[name], plan_model(GRAPHS[name], context=CONTEXT, dtype=dtype))


@pytest.mark.parametrize("name", GRAPHS)
def test_operations(name: str) -> None:
    check_operations(GRAPHS[name], plan_model(GRAPHS[name], context=CONTEXT))
    ids = torch.zeros(1, CONTEXT, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as theirs, sdpa_kernel(SDPBackend.MATH):
        build(GRAPHS[name], device="meta")(ids).sum().backward()
    assert counted(GRAPHS[name], CONTEXT)[1] == theirs.get_total_flops()


@pytest.mark.presets
@pytest.mark.parametrize("preset", presets())
def test_preset(preset: str) -> None:
    """At full size, on the meta device."""
    for graph in preset_graphs(preset).values():
        check_tensors(graph, plan_model(graph, context=64, dtype="bfloat16"), "meta")
        check_cache(graph, plan_model(graph, context=1024, dtype="bfloat16"))
        check_operations(graph, plan_model(graph, context=512))


def test_decoding_operations() -> None:
    """One more token with a cache, counted from a cached pass."""
    graph = GRAPHS["attention_mha"]
    plan = plan_model(graph, context=CONTEXT)
    model = build(graph, seed=0)
    cache = model.new_cache(1)
    ids = torch.zeros(1, CONTEXT, dtype=torch.long)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        from caramba_core.nn.frame import Frame

        model(ids[:, :-1], Frame.of(ids[:, :-1], cache=cache))
        with FlopCounterMode(display=False) as counter:
            model(ids[:, -1:], Frame.of(ids[:, -1:], cache=cache))
    assert plan.total.decoding_operations == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_generated_bytes() -> None:
    """What decoding really allocates, token by token, is what the plan states."""
    graph = GRAPHS["nested_each"]
    model = build(graph, seed=0)
    cache = model.new_cache(2, capacity=CONTEXT)
    held: Any = cache.bytes
    assert held == 2 * plan_model(graph, context=CONTEXT).total.context_bytes
