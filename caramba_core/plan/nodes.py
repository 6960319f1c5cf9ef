"""A graph with the figures of every node: closed forms of what components declare, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import attrs

from caramba_core.component import Attention, CacheEntry, Layer, Shape, Weight
from caramba_core.graph import Graph, Node, Scope
from caramba_core.kinds import LAYER_KINDS
from caramba_core.plan.figures import Figures, cached_bytes, weight_bytes
from caramba_core.plugins.registry import registry
from caramba_core.storage import Storage

__all__ = ["ModelPlan", "NodePlan", "ScopePlan", "plan_model"]

_NODE_KINDS = (*LAYER_KINDS, "embedder", "head")


@attrs.frozen(kw_only=True, eq=False)
class NodePlan:
    """One node: its declared tensors, ``own`` figures, and the ``total`` with everything below it."""

    node: Node
    type: str
    weights: Mapping[str, Weight]
    cache: Mapping[str, CacheEntry]
    own: Figures
    total: Figures
    scopes: tuple[ScopePlan, ...] = ()
    likeness: int
    """The same for nodes that differ in nothing but the scope that they stand in."""

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
        groups: dict[int, list[ScopePlan]] = {}
        for scope in self.scopes:
            groups.setdefault(scope.likeness, []).append(scope)
        return list(groups.values())


@attrs.frozen(kw_only=True, eq=False)
class ScopePlan:
    """A chain of nodes inside a topology."""

    name: str
    nodes: tuple[NodePlan, ...]
    applications: int
    likeness: int

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

    def cached_bytes(self, tokens: int, storage: Storage | None = None) -> int:
        """Bytes that decoding keeps of one sequence of ``tokens`` tokens, states included."""
        return sum(
            cached_bytes(node.cache, self.dtype, tokens, storage) * node.node.applications for node in self.walk()
        )

    def walk(self) -> Iterator[NodePlan]:
        """Every node, in the order of execution."""
        for root in self.roots:
            yield from root.walk()


def plan_model(graph: Graph, *, context: int, dtype: str = "float32") -> ModelPlan:
    """The figures of a graph.

    ``context`` is the length of the sequences whose operations are counted, ``dtype`` the type of weights and cache.
    """
    planner = _Planner(context, dtype)
    roots = tuple(planner.node(node) for node in (graph.embedder, graph.topology, graph.head))
    return ModelPlan(graph=graph, context=context, dtype=dtype, roots=roots)


@attrs.frozen
class _Declared:
    """What one config declares at one width, for one application in a pass; repeated blocks share their configs."""

    type: str
    weights: Mapping[str, Weight]
    cache: Mapping[str, CacheEntry]
    figures: Figures
    likeness: int


class _Planner:
    def __init__(self, context: int, dtype: str) -> None:
        self._context = context
        self._dtype = dtype
        self._declared: dict[tuple[int, int], _Declared] = {}
        self._types: dict[type, str] = {}
        self._likenesses: dict[object, int] = {}

    def node(self, node: Node) -> NodePlan:
        """The plan of a node and everything below it."""
        key = (id(node.config), node.width_in)
        if key not in self._declared:
            self._declared[key] = self._declare(node)
        declared = self._declared[key]
        own = declared.figures.applied(node.applications)
        scopes = tuple(map(self._scope, node.scopes))
        inside = tuple(scope.likeness if node.inline else (scope.local, scope.likeness) for scope in scopes)
        return NodePlan(
            node=node,
            type=declared.type,
            weights=declared.weights,
            cache=declared.cache,
            own=own,
            total=sum((scope.total for scope in scopes), own),
            scopes=scopes,
            likeness=self._liken((declared.likeness, node.applications, inside)),
        )

    def _scope(self, scope: Scope) -> ScopePlan:
        nodes = tuple(map(self.node, scope.nodes))
        likeness = self._liken((scope.applications, *((node.local, node.likeness) for node in nodes)))
        return ScopePlan(name=scope.name, nodes=nodes, applications=scope.applications, likeness=likeness)

    def _declare(self, node: Node) -> _Declared:
        config, width = node.config, node.width_in
        weights = config.weights(width)
        cache = config.cache_spec(width) if isinstance(config, Attention) else {}
        forward = config.cost(width, Shape(batch=1, tokens=self._context, context=self._context))
        decoding = config.cost(width, Shape(batch=1, tokens=1, context=self._context))
        state = cached_bytes(cache, self._dtype, 0)
        figures = Figures(
            parameters=sum(weight.numel for weight in weights.values() if weight.trainable),
            buffers=sum(weight.numel for weight in weights.values() if not weight.trainable),
            weight_bytes=sum(weight_bytes(weight, self._dtype) for weight in weights.values()),
            operations=forward.operations,
            causal_operations=forward.causal_operations,
            decoding_operations=decoding.operations,
            saved=forward.saved,
            cache_values=sum(entry.values for entry in cache.values() if entry.per_token),
            cache_bytes=cached_bytes(cache, self._dtype, 1) - state,
            state_bytes=state,
            context_bytes=cached_bytes(cache, self._dtype, self._context),
        )
        likeness = self._liken((type(config), width, node.width_out, *_settings(config)))
        return _Declared(self._type(type(config)), weights, cache, figures, likeness)

    def _type(self, config: type) -> str:
        """The name under which a config's class is registered."""
        if config not in self._types:
            value = f"{config.__module__}:{config.__qualname__}"
            entries = (entry for kind in _NODE_KINDS for entry in registry().entries(kind))
            names = [entry.name for entry in entries if entry.value == value]
            alike = [name for name in names if name.replace("_", "") == config.__name__.lower()]
            self._types[config] = (*alike, *names, config.__qualname__)[0]
        return self._types[config]

    def _liken(self, described: object) -> int:
        """A number that is the same for equal descriptions alone."""
        return self._likenesses.setdefault(described, len(self._likenesses))


def _settings(config: Layer) -> Iterator[str]:
    """The fields of a config as text; layers inside it are compared as nodes, and names as the scopes' names."""
    for attribute in attrs.fields(cast(Any, type(config))):
        value = getattr(config, attribute.name)
        inside = value if isinstance(value, tuple) else (value,)
        if attribute.name != "name" and not any(isinstance(item, Layer) for item in inside):
            yield f"{attribute.name}={value!r}"
