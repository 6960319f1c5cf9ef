"""What a config declares against what its module really has and does."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from caramba_core.components import Attention, Cost, Shape
from caramba_core.graph import local_name
from caramba_core.nn.build import build, load_object
from caramba_plugins_testing.case import Case, CheckFailed, check, require
from caramba_plugins_testing.subject import Subject, graph_of, inputs, require_close

__all__ = ["declared_cache", "declared_operations", "declared_shape", "declared_weights", "mixing", "probing"]


@check("the output has the declared width")
@torch.no_grad()
def declared_shape(case: Case) -> None:
    """``[B, T, output_width]`` for odd sizes too."""
    subject = Subject(case)
    width = case.config.output_width(case.width)
    for batch, tokens in ((1, 1), (2, 5), (3, case.tokens)):
        found = tuple(subject.run(inputs(case, batch=batch, tokens=tokens)).shape)
        declared = (batch, tokens, width)
        require(found == declared, f"declares outputs {list(declared)} and gives {list(found)}")


@check("the module has exactly the declared weights")
def declared_weights(case: Case) -> None:
    """Names, shapes, types and trainability of every parameter and every stored buffer."""
    graph = graph_of(case)
    state = build(graph).state_dict(keep_vars=True)
    real = {name: tensor for name, tensor in state.items() if not name.startswith(("embedder.", "head."))}
    declared = {
        f"{local_name(node.name)}.{name}": weight
        for node in graph.topology.walk()
        if not node.inline
        for name, weight in node.config.weights(node.width_in).items()
    }
    for name in sorted(declared.keys() ^ real.keys()):
        what = "declares a weight that its module does not have" if name in declared else "has an undeclared weight"
        raise CheckFailed(f"{what}: {name}")
    for name, weight in declared.items():
        tensor = real[name]
        dtype = torch.float32 if weight.dtype is None else getattr(torch, weight.dtype)
        for what, said, found in (
            ("as", list(weight.shape), list(tensor.shape)),
            ("trainable:", weight.trainable, isinstance(tensor, nn.Parameter)),
            ("in", dtype, tensor.dtype),
        ):
            require(said == found, f"declares {name} {what} {said}, and the module has {found}")


@check("the declared operations are those that torch counts")
@torch.no_grad()
def declared_operations(case: Case) -> None:
    """Within 1 % of ``torch.utils.flop_counter`` with attention spelled out, for training and for a decoding step."""
    subject = Subject(case, dtype=torch.float32)
    x = inputs(case).float()
    _compare_operations(case, subject, x, Shape(batch=2, tokens=case.tokens, context=case.tokens), cached=0)
    if case.is_attention:
        _compare_operations(case, subject, x, Shape(batch=2, tokens=1, context=case.tokens), cached=case.tokens - 1)


def _compare_operations(case: Case, subject: Subject, x: Tensor, shape: Shape, *, cached: int) -> None:
    declared = Cost()
    for node in subject.graph.topology.walk():
        declared = sum([node.config.cost(node.width_in, shape)] * node.applications, declared)
    cache = None
    if cached:
        cache = subject.model.new_cache(x.shape[0])
        subject.decode(x[:, :cached], [cached], cache=cache)
    piece = x[:, cached:]
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        subject.run(piece, subject.frame(piece, cache=cache))
    counted = counter.get_total_flops()
    words = f"decoding a token after {cached}" if cached else f"a pass over {shape.tokens} tokens"
    require(
        abs(declared.operations - counted) <= 0.01 * counted,
        f"declares {declared.operations:,} operations for {words}, torch counts {counted:,}",
    )
    require(
        declared.causal_operations <= declared.operations,
        f"declares more operations under a causal mask than without, for {words}",
    )


@check("the cache holds what is declared, and nothing is kept elsewhere", applies=lambda case: case.is_attention)
@torch.no_grad()
def declared_cache(case: Case) -> None:
    """Bytes as allocated, every entry in use, and no tensor of the module grows while decoding."""
    assert isinstance(case.config, Attention)
    subject, x = Subject(case, dtype=torch.float32), inputs(case).float()
    kept_before = _tensors_of(subject.module())
    cache = subject.model.new_cache(x.shape[0], capacity=case.tokens)
    subject.decode(x, [case.tokens - 1, 1], cache=cache)
    declared = 0
    for entry in case.config.cache_spec(case.width).values():
        size = torch.float32.itemsize if entry.dtype is None else getattr(torch, entry.dtype).itemsize
        tokens = 1 if not entry.per_token else min(case.tokens, entry.window or case.tokens)
        declared += x.shape[0] * tokens * entry.values * size
    held = f"declares {declared} cached bytes for {case.tokens} tokens, {cache.bytes} are held"
    require(cache.bytes == declared, held)
    (node,) = subject.nodes()
    for name, tensor in cache.layer(node.name).tensors.items():
        require(tensor.any(), f"declares the cache entry {name!r}, and never writes it")
    more = _tensors_of(subject.module()) - kept_before
    require(
        more == 0,
        f"keeps {more:+} values in its module while decoding: everything that decoding keeps belongs into the cache, "
        "where it is counted, truncated and exported",
    )


def _tensors_of(module: nn.Module) -> int:
    """Number of values that a module holds in attributes of any kind."""
    held = tree_leaves([dict(vars(part)) for part in module.modules()])
    return sum(value.numel() for value in held if isinstance(value, Tensor))


def _module_has(name: str, case: Case) -> bool:
    return case.is_attention and hasattr(load_object(case.config.builds), name)


@check("the probe tells what the forward pass does", applies=lambda case: _module_has("probe", case))
@torch.no_grad()
def probing(case: Case) -> None:
    """Calibration sees the real attention: its output, and probabilities that are causal and sum to at most one."""
    subject, x = Subject(case, dtype=torch.float32), inputs(case).float()
    probe = subject.module().probe(x, subject.frame(x))  # type: ignore[operator]
    require_close(probe.output, subject.run(x), 1e-5, "the probe's output differs from the forward pass")
    probabilities = probe.probabilities
    causal = not bool(probabilities.triu(1).any()) and not bool((probabilities < 0).any())
    require(causal, "the probe's probabilities are negative or look ahead")
    require(probabilities.sum(-1).max() <= 1 + 1e-5, "the probe's probabilities sum to more than one")
    projected = _projected(subject, probe.mixed)
    require_close(projected, probe.output, 1e-5, "the output projection of the probe's mixture differs from its output")


@check("the output is o_proj of the mixture", applies=lambda case: _module_has("mix", case))
@torch.no_grad()
def mixing(case: Case) -> None:
    """``mix`` is everything before the output projection, so that this can be refitted."""
    subject, x = Subject(case), inputs(case)
    mixed = subject.module().mix(x, subject.frame(x))  # type: ignore[operator]
    require_close(_projected(subject, mixed), subject.run(x), 1e-10, "o_proj(mix(x)) differs from the output")


def _projected(subject: Subject, mixed: Tensor) -> Tensor:
    weights = dict(subject.module().named_parameters())
    return linear(mixed, weights["o_proj"], weights.get("o_bias"))
