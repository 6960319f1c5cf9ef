"""What training needs beyond its workload's figures, for plans (light)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import attrs

from caramba_core.components import Topology
from caramba_core.graph import Graph, trained_nodes
from caramba_core.storage import ITEM_BYTES

if TYPE_CHECKING:
    from caramba_core.graph import Node
    from caramba_core.plan import ModelPlan, NodePlan, RunPlan
    from caramba_plugins_standard.training import Training

__all__ = ["recomputed_parts", "with_recomputing"]


def recomputed_parts(graph: Graph, which: Literal["none", "full"] | tuple[str, ...]) -> list[str]:
    """Dotted names of the blocks or nodes whose activations are computed again; of nested ones the outermost.

    ``full`` are all blocks, or where there are none, all nodes between embedder and head.
    """
    if which == "full":
        return list(_blocks(graph.topology)) or list(_outermost(graph.topology, frozenset(graph.nodes())))
    chosen = frozenset() if which == "none" else trained_nodes(graph, which)
    return [name for node in (graph.embedder, graph.topology, graph.head) for name in _outermost(node, chosen)]


def _blocks(node: Node) -> Iterator[str]:
    for scope in node.scopes:
        if isinstance(node.config, Topology) and node.config.inline is None:
            yield scope.name
        else:
            for child in scope.nodes:
                yield from _blocks(child)


def _outermost(node: Node, chosen: frozenset[str]) -> Iterator[str]:
    if node.name in chosen and not node.inline:
        yield node.name
    else:
        for scope in node.scopes:
            for child in scope.nodes:
                yield from _outermost(child, chosen)


def with_recomputing(plan: RunPlan, settings: Training, model: ModelPlan) -> RunPlan:
    """The plan of a run that keeps the inputs of some parts alone, and holds one part's activations at a time."""
    from caramba_core.plan.runs import saved_bytes

    parts = frozenset(recomputed_parts(model.graph, settings.activation_checkpointing))
    if not parts:
        return plan
    trained = trained_nodes(model.graph, plan.trains)
    saved = saved_bytes(model, trained, plan.dtype)
    embedder = model.graph.embedder.name
    stream = ITEM_BYTES["float32" if embedder in trained and model.dtype != "float64" else model.dtype]
    kept, largest = sum(saved.values()), 0
    for nodes, applications in _regions(model, parts):
        inside = sum(saved.get(node.node.name, 0) for node in nodes)
        if inside:
            kept += applications * model.context * nodes[0].node.width_in * stream - inside
            largest = max(largest, inside // applications)
    memory = plan.memory
    working = memory.working + largest * plan.batch_size
    return attrs.evolve(plan, memory=attrs.evolve(memory, activations=kept * plan.batch_size, working=working))


def _regions(model: ModelPlan, parts: frozenset[str]) -> Iterator[tuple[list[NodePlan], int]]:
    """The nodes of each part, and how often one pass applies it."""

    def within(node: NodePlan) -> Iterator[tuple[list[NodePlan], int]]:
        if node.node.name in parts and not node.node.inline:
            yield list(node.walk()), node.node.applications
            return
        for scope in node.scopes:
            if scope.name in parts:
                inner = [below for child in scope.nodes for below in child.walk()]
                yield inner, max(below.node.applications for below in scope.nodes)
            else:
                for child in scope.nodes:
                    yield from within(child)

    for root in model.roots:
        yield from within(root)
