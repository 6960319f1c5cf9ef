"""What a config declares against what its module really has and does."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear
from torch.utils.flop_counter import FlopCounterMode

from caramba_core.component import Attention, Cost, Shape
from caramba_core.graph import local_name
from caramba_core.nn.build import build, load_object
from caramba_plugins_testing.case import Case, CheckFailed
from caramba_plugins_testing.registered import check
from caramba_plugins_testing.subject import Subject, difference, graph_of, inputs

__all__ = ["declared_cache", "declared_operations", "declared_shape", "declared_weights", "mixing", "probing"]


@check("the output has the declared width")
@torch.no_grad()
def declared_shape(case: Case) -> None:
    """``[B, T, output_width]`` for odd sizes too."""
    subject = Subject(case)
    width = case.config.output_width(case.width)
    for batch, tokens in ((1, 1), (2, 5), (3, case.tokens)):
        found = tuple(subject.run(inputs(case, batch=batch, tokens=tokens)).shape)
        if found != (batch, tokens, width):
            raise CheckFailed(f"{case.name} declares outputs [{batch}, {tokens}, {width}] and gives {list(found)}")


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
        raise CheckFailed(f"{case.name} {what}: {name}")
    for name, weight in declared.items():
        tensor = real[name]
        if tuple(tensor.shape) != weight.shape:
            raise CheckFailed(
                f"{case.name} declares {name} as {list(weight.shape)}, the module has {list(tensor.shape)}"
            )
        if isinstance(tensor, nn.Parameter) != weight.trainable:
            raise CheckFailed(f"{case.name} declares {name} trainable={weight.trainable}, the module says otherwise")
        dtype = torch.float32 if weight.dtype is None else getattr(torch, weight.dtype)
        if tensor.dtype != dtype:
            raise CheckFailed(f"{case.name} declares {name} in {dtype}, the module has {tensor.dtype}")


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
    if abs(declared.operations - counted) > 0.01 * counted:
        raise CheckFailed(
            f"{case.name} declares {declared.operations:,} operations for {words}, torch counts {counted:,}"
        )
    if declared.causal_operations > declared.operations:
        raise CheckFailed(f"{case.name} declares more operations under a causal mask than without, for {words}")


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
        size = torch.empty(
            0, dtype=torch.float32 if entry.dtype is None else getattr(torch, entry.dtype)
        ).element_size()
        tokens = 1 if not entry.per_token else min(case.tokens, entry.window or case.tokens)
        declared += x.shape[0] * tokens * entry.values * size
    if cache.bytes != declared:
        raise CheckFailed(
            f"{case.name} declares {declared} cached bytes for {case.tokens} tokens, {cache.bytes} are held"
        )
    (node,) = subject.nodes()
    for name, tensor in cache.layer(node.name).tensors.items():
        if not bool(tensor.any()):
            raise CheckFailed(f"{case.name} declares the cache entry {name!r}, and never writes it")
    kept_after = _tensors_of(subject.module())
    if kept_after != kept_before:
        raise CheckFailed(
            f"{case.name} keeps {kept_after - kept_before:+} values in its module while decoding: "
            "everything that decoding keeps belongs into the cache, where it is counted, truncated and exported"
        )


def _tensors_of(module: nn.Module) -> int:
    """Number of values that a module holds in attributes of any kind."""
    return sum(tensor.numel() for part in module.modules() for tensor in _walk(dict(vars(part))))


def _walk(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _walk(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _walk(inner)


def _module_has(name: str, case: Case) -> bool:
    return case.is_attention and hasattr(load_object(case.config.builds), name)


@check("the probe tells what the forward pass does", applies=lambda case: _module_has("probe", case))
@torch.no_grad()
def probing(case: Case) -> None:
    """Calibration sees the real attention: its output, and probabilities that are causal and sum to at most one."""
    subject, x = Subject(case, dtype=torch.float32), inputs(case).float()
    probe = subject.module().probe(x, subject.frame(x))  # type: ignore[operator]
    error = difference(probe.output, subject.run(x))
    if error > 1e-5:
        raise CheckFailed(
            f"{case.name}: the probe's output differs from the forward pass by {error:.1e} of the largest"
        )
    probabilities = probe.probabilities
    if bool(probabilities.triu(1).any()) or bool((probabilities < 0).any()):
        raise CheckFailed(f"{case.name}: the probe's probabilities are negative or look ahead")
    if float(probabilities.sum(-1).max()) > 1 + 1e-5:
        raise CheckFailed(f"{case.name}: the probe's probabilities sum to more than one")
    weights = dict(subject.module().named_parameters())
    error = difference(linear(probe.mixed, weights["o_proj"], weights.get("o_bias")), probe.output)
    if error > 1e-5:
        raise CheckFailed(f"{case.name}: the output projection of the probe's mixture is not its output ({error:.1e})")


@check("the output is o_proj of the mixture", applies=lambda case: _module_has("mix", case))
@torch.no_grad()
def mixing(case: Case) -> None:
    """``mix`` is everything before the output projection, so that this can be refitted."""
    subject, x = Subject(case), inputs(case)
    module = subject.module()
    weights = dict(module.named_parameters())
    mixed = module.mix(x, subject.frame(x))  # type: ignore[operator]
    error = difference(linear(mixed, weights["o_proj"], weights.get("o_bias")), subject.run(x))
    if error > 1e-10:
        raise CheckFailed(f"{case.name}: o_proj(mix(x)) differs from the output by {error:.1e} of the largest")
