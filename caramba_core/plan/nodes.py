"""A graph with the figures of every node: closed forms of what components declare, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import attrs

from caramba_core.component import Attention, CacheEntry, Cost, Layer, Shape, Weight
from caramba_core.graph import Graph, Node
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
    likeness: object
    """Equal for nodes that differ in nothing but the scope that they stand in."""

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

    def alike(self) -> list[tuple[tuple[ScopePlan, ...], ScopePlan]]:
        """The scopes by what they hold: all that are alike, and the first of them, in the order of first appearance."""
        groups: dict[object, list[ScopePlan]] = {}
        for scope in self.scopes:
            groups.setdefault(scope.likeness, []).append(scope)
        return [(tuple(group), group[0]) for group in groups.values()]


@attrs.frozen(kw_only=True, eq=False)
class ScopePlan:
    """A chain of nodes inside a topology."""

    name: str
    nodes: tuple[NodePlan, ...]
    applications: int
    likeness: object

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
    """What one config declares for one width; configs that stand in many places are asked once."""

    config: object
    type: str
    weights: Mapping[str, Weight]
    cache: Mapping[str, CacheEntry]
    pass_: Cost
    step: Cost
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
        declared = self._declare(node)
        own = self._figures(declared, node.applications)
        scopes = []
        for scope in node.scopes:
            nodes = tuple(self.node(child) for child in scope.nodes)
            likeness = self._liken(("scope", scope.applications, *((n.local, n.likeness) for n in nodes)))
            scopes.append(ScopePlan(name=scope.name, nodes=nodes, applications=scope.applications, likeness=likeness))
        held = tuple(scope.likeness if node.inline else (scope.local, scope.likeness) for scope in scopes)
        return NodePlan(
            node=node,
            type=declared.type,
            weights=declared.weights,
            cache=declared.cache,
            own=own,
            total=sum((scope.total for scope in scopes), own),
            scopes=tuple(scopes),
            likeness=self._liken(("node", declared.likeness, node.applications, held)),
        )

    def _declare(self, node: Node) -> _Declared:
        key = (id(node.config), node.width_in)
        known = self._declared.get(key)
        if known is None:
            config, width = node.config, node.width_in
            whole = Shape(batch=1, tokens=self._context, context=self._context)
            known = _Declared(
                config=config,
                type=self._type(type(config)),
                weights=config.weights(width),
                cache=config.cache_spec(width) if isinstance(config, Attention) else {},
                pass_=config.cost(width, whole),
                step=config.cost(width, Shape(batch=1, tokens=1, context=self._context)),
                likeness=self._liken((type(config), width, node.width_out, *_settings(config))),
            )
            self._declared[key] = known
        return known

    def _figures(self, declared: _Declared, applications: int) -> Figures:
        weights, cache = declared.weights.values(), declared.cache
        token = sum(entry.values for entry in cache.values() if entry.per_token)
        states = {name: entry for name, entry in cache.items() if not entry.per_token}
        first = cached_bytes(cache, self._dtype, 1)
        state = cached_bytes(states, self._dtype, 1)
        return Figures(
            parameters=sum(weight.numel for weight in weights if weight.trainable),
            buffers=sum(weight.numel for weight in weights if not weight.trainable),
            weight_bytes=sum(weight_bytes(weight, self._dtype) for weight in weights),
            operations=declared.pass_.operations * applications,
            causal_operations=declared.pass_.causal_operations * applications,
            decoding_operations=declared.step.operations * applications,
            saved=declared.pass_.saved * applications,
            cache_values=token * applications,
            cache_bytes=(first - state) * applications,
            state_bytes=state * applications,
            context_bytes=cached_bytes(cache, self._dtype, self._context) * applications,
        )

    def _type(self, config: type) -> str:
        """The name under which a config's class is registered."""
        if config not in self._types:
            value = f"{config.__module__}:{config.__qualname__}"
            entries = (entry for kind in _NODE_KINDS for entry in registry().entries(kind))
            names = [entry.name for entry in entries if entry.value == value]
            own = [name for name in names if name.replace("_", "") == config.__name__.lower()]
            self._types[config] = (own or names or [config.__qualname__])[0]
        return self._types[config]

    def _liken(self, described: object) -> int:
        return self._likenesses.setdefault(described, len(self._likenesses))


def _settings(config: Layer) -> Iterator[str]:
    """The fields of a config in words; layers inside it are compared as nodes, names where they stand."""
    for attribute in attrs.fields(cast(Any, type(config))):
        value = getattr(config, attribute.name)
        inside = value if isinstance(value, tuple) else (value,)
        if attribute.name != "name" and not any(isinstance(item, Layer) for item in inside):
            yield f"{attribute.name}={value!r}"
