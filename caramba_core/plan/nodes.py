"""A graph with the figures of every node: closed forms of what components declare, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

import attrs

from caramba_core.components import ITEM_BYTES, Attention, CacheEntry, Shape, Storage, Weight
from caramba_core.graph import Graph, Node
from caramba_core.plugins.registry import registry

__all__ = ["Figures", "ModelPlan", "NodePlan", "ScopePlan", "cached_bytes", "per_token", "plan_model", "weight_bytes"]


@attrs.frozen(kw_only=True)
class Figures:
    """What a node, or a node with everything below it, holds and takes.

    ``operations``, ``causal_operations`` and ``saved`` (values kept for the backward pass) are those of a pass over one
    sequence of the plan's context length; ``decoding_operations`` those of one more token with that many cached.
    ``context_bytes`` is the whole cache of a sequence at that context: ``state_bytes`` are kept once per sequence, and
    ``cache_bytes`` is the rest per token of the context, to which a window that is shorter contributes less.
    ``cache_values`` are those cached of a token that every window still holds.
    """

    parameters: int = 0
    buffers: int = 0
    weight_bytes: int = 0
    operations: int = 0
    causal_operations: int = 0
    decoding_operations: int = 0
    saved: int = 0
    cache_values: int = 0
    cache_bytes: float = 0
    state_bytes: int = 0
    context_bytes: int = 0

    def __add__(self, other: Figures) -> Figures:
        return Figures(**{name: getattr(self, name) + getattr(other, name) for name in attrs.fields_dict(Figures)})

    def applied(self, times: int) -> Figures:
        """The figures of a node that one pass applies ``times`` times: the same weights, a cache each."""
        weights = {"parameters", "buffers", "weight_bytes"}
        scaled = {name: getattr(self, name) * times for name in attrs.fields_dict(Figures) if name not in weights}
        return attrs.evolve(self, **scaled)


@attrs.frozen(kw_only=True, eq=False)
class NodePlan:
    """One node with its declared tensors and its ``own`` figures; ``total`` adds everything below it."""

    node: Node
    type: str
    weights: Mapping[str, Weight]
    cache: Mapping[str, CacheEntry]
    storage: Storage | None
    own: Figures
    scopes: tuple[ScopePlan, ...] = ()

    @cached_property
    def total(self) -> Figures:
        """The figures of the node and everything below it."""
        return sum((scope.total for scope in self.scopes), self.own)

    @property
    def local(self) -> str:
        """The last part of the name; empty for an inline topology, which has none of its own."""
        return "" if self.node.inline else self.node.name.rsplit(".", 1)[-1]

    def walk(self) -> Iterator[NodePlan]:
        """This node and everything below it, in the order of execution."""
        yield self
        for scope in self.scopes:
            for child in scope.nodes:
                yield from child.walk()

    def alike(self) -> list[list[ScopePlan]]:
        """The scopes, those that differ in their names alone together, in the order of first appearance."""
        groups: dict[object, list[ScopePlan]] = {}
        for scope in self.scopes:
            content = [(node.node.width_in, repr(node.node.config)) for node in scope.nodes]
            groups.setdefault((scope.applications, *content), []).append(scope)
        return list(groups.values())


@attrs.frozen(kw_only=True, eq=False)
class ScopePlan:
    """A chain of nodes inside a topology."""

    name: str
    nodes: tuple[NodePlan, ...]
    applications: int

    @property
    def local(self) -> str:
        """The last part of the name."""
        return self.name.rsplit(".", 1)[-1]

    @property
    def total(self) -> Figures:
        """The figures of all nodes."""
        return sum((node.total for node in self.nodes), Figures())


@attrs.frozen(kw_only=True)
class ModelPlan:
    """A model for sequences of ``context`` tokens with weights and cache held in ``dtype``."""

    graph: Graph
    context: int
    dtype: str
    roots: tuple[NodePlan, ...]

    @property
    def total(self) -> Figures:
        """The figures of the whole model."""
        return sum((root.total for root in self.roots), Figures())

    def walk(self) -> Iterator[NodePlan]:
        """Every node, in the order of execution."""
        for root in self.roots:
            yield from root.walk()

    def at(self, context: int) -> ModelPlan:
        """The same model for sequences of this length."""
        return self if context == self.context else plan_model(self.graph, context=context, dtype=self.dtype)

    def cached_bytes(self, tokens: int, storage: Storage | None = None) -> int:
        """Bytes cached of one sequence of ``tokens`` tokens, states included; ``storage`` stands for the nodes' own."""
        return sum(
            cached_bytes(node.cache, self.dtype, tokens, storage or node.storage) * node.node.applications
            for node in self.walk()
        )


def plan_model(graph: Graph, *, context: int, dtype: str = "float32") -> ModelPlan:
    """The figures of a graph.

    ``context`` is the length of the sequences whose operations are counted, ``dtype`` the type of weights and cache.
    """
    planner = _Planner(context, dtype)
    roots = tuple(planner.plan(node) for node in (graph.embedder, graph.topology, graph.head))
    return ModelPlan(graph=graph, context=context, dtype=dtype, roots=roots)


class _Planner:
    def __init__(self, context: int, dtype: str) -> None:
        self._context = context
        self._dtype = dtype
        self._declared: dict[tuple[int, int], NodePlan] = {}

    def plan(self, node: Node) -> NodePlan:
        """The plan of a node and everything below it."""
        key = (id(node.config), node.width_in)  # repeated blocks share their configs, which are asked once
        if key not in self._declared:
            self._declared[key] = self._declare(node)
        declared = self._declared[key]
        scopes = (
            ScopePlan(name=scope.name, nodes=tuple(map(self.plan, scope.nodes)), applications=scope.applications)
            for scope in node.scopes
        )
        return attrs.evolve(declared, node=node, own=declared.own.applied(node.applications), scopes=tuple(scopes))

    def _declare(self, node: Node) -> NodePlan:
        """What a node's config declares for one application."""
        config, width = node.config, node.width_in
        weights = config.weights(width)
        cache, storage = (config.cache_spec(width), config.cache) if isinstance(config, Attention) else ({}, None)
        forward = config.cost(width, Shape(batch=1, tokens=self._context, context=self._context))
        decoding = config.cost(width, Shape(batch=1, tokens=1, context=self._context))
        state, whole = (cached_bytes(cache, self._dtype, tokens, storage) for tokens in (0, self._context))
        own = Figures(
            parameters=sum(weight.numel for weight in weights.values() if weight.trainable),
            buffers=sum(weight.numel for weight in weights.values() if not weight.trainable),
            weight_bytes=sum(weight_bytes(weight, self._dtype) for weight in weights.values()),
            operations=forward.operations,
            causal_operations=forward.causal_operations,
            decoding_operations=decoding.operations,
            saved=forward.saved,
            cache_values=sum(entry.values for entry in cache.values() if entry.per_token),
            cache_bytes=per_token(whole - state, self._context),
            state_bytes=state,
            context_bytes=whole,
        )
        type_ = registry().name_of(type(config))
        return NodePlan(node=node, type=type_, weights=weights, cache=cache, storage=storage, own=own)


def per_token(count: int, context: int) -> float:
    """A count over a context as one per token, an integer where it is one."""
    return count / context if count % context else count // context


def weight_bytes(weight: Weight, dtype: str) -> int:
    """Bytes of a declared tensor in a model of this type."""
    return weight.numel * ITEM_BYTES[weight.dtype or dtype]


def cached_bytes(spec: Mapping[str, CacheEntry], dtype: str, tokens: int, storage: Storage | None = None) -> int:
    """Bytes that an attention caches of one sequence of ``tokens`` tokens; ``storage`` quantizes the cache."""
    total = 0
    for entry in spec.values():
        held = 1 if not entry.per_token else tokens if entry.window is None else min(tokens, entry.window)
        if storage is not None and storage.quantizes(entry):
            total += held * storage.bytes(entry)
        else:
            total += held * entry.values * ITEM_BYTES[entry.dtype or dtype]
    return total
