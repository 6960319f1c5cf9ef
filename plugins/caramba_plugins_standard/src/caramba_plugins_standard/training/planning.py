"""What training needs beyond its workload's figures, for plans (light)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import attrs

from caramba_core.components import ITEM_BYTES, Topology
from caramba_core.graph import Graph, trained_nodes
from caramba_core.plan.runs import backward_operations, saved_bytes, training_memory
from caramba_plugins_standard.training import block_count

if TYPE_CHECKING:
    from caramba_core.components import Weight
    from caramba_core.graph import Node
    from caramba_core.modes import Workload
    from caramba_core.plan import ModelPlan, NodePlan, RunPlan
    from caramba_plugins_standard.modes import Train
    from caramba_plugins_standard.training import LoRA, Training

__all__ = [
    "adapted_matrices",
    "divided_plan",
    "recomputed_parts",
    "what_trains",
    "with_adapters",
    "with_optimizers",
    "with_recomputing",
    "with_states",
]


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


def with_recomputing(plan: RunPlan, run: Train, model: ModelPlan) -> RunPlan:
    """The plan of a run that keeps the inputs of some parts alone, and holds one part's activations at a time."""
    parts = frozenset(recomputed_parts(model.graph, run.train.activation_checkpointing))
    if not parts:
        return plan
    trained = trained_nodes(model.graph, run.trains)
    adapted = {} if run.train.lora is None else adapted_matrices(model.graph, run.train.lora, trained)
    saved = saved_bytes(model, trained, plan.dtype, {name.rpartition(".")[0] for name in adapted})
    kept, largest = plan.memory.activations // plan.batch_size, 0
    for nodes, applications in _regions(model, parts):
        inside = sum(saved.get(node.node.name, 0) for node in nodes)
        if inside:
            kept += applications * model.context * nodes[0].node.width_in * ITEM_BYTES[plan.dtype] - inside
            largest = max(largest, inside // applications)
    # a part is computed again when the logits are gone
    working = plan.memory.working + max(0, largest * plan.batch_size - plan.memory.logits)
    return attrs.evolve(plan, memory=attrs.evolve(plan.memory, activations=kept * plan.batch_size, working=working))


def with_states(plan: RunPlan, run: Train, model: ModelPlan) -> RunPlan:
    """The plan of a run whose strategy keeps hidden states behind blocks, or files."""
    states = run.train.strategy.kept_states(block_count(model.graph))
    values = states * plan.batch_size * plan.context * model.graph.d_model
    kept = plan.memory.activations + values * ITEM_BYTES[plan.dtype]
    files = run.train.strategy.file_bytes(plan.tokens, model.graph.vocab_size)
    return attrs.evolve(plan, files=files, memory=attrs.evolve(plan.memory, activations=kept))


def with_optimizers(plan: RunPlan, run: Train, model: ModelPlan) -> RunPlan:
    """The plan of a run whose optimizer leaves some weights to another one, which keeps a state of another size."""
    one = run.train.complete().optimizer
    assert one is not None
    trained, tables = trained_nodes(model.graph, run.trains), {model.graph.embedder.name, model.graph.head.name}
    more = 0
    for node in (node for node in model.walk() if node.node.name in trained):
        for weight in (weight for weight in node.weights.values() if weight.trainable):
            other = one.moving(weight.shape, table=node.node.name in tables)
            more += (other.state_values() - one.state_values()) * weight.numel * _held(model)
            more += (other.state_scalars() - one.state_scalars()) * ITEM_BYTES["float32"]
    return attrs.evolve(plan, memory=attrs.evolve(plan.memory, optimizer=plan.memory.optimizer + more))


def _held(model: ModelPlan) -> int:
    """Bytes of a value of weights that train."""
    return ITEM_BYTES["float64" if model.dtype == "float64" else "float32"]


def divided_plan(plan: RunPlan, run: Train, model: ModelPlan, teacher: ModelPlan | None) -> RunPlan:
    """The plan of one of the processes that divide weights, gradients and optimizer state.

    Nothing is shared: student and teacher have parts of their own, and a teacher that a step does not need is gone.
    Where nodes train one at a time, others are not divided.  Beside its parts each process gathers the blocks in turn,
    in the type of the computation, the next one while one runs; what stands outside of blocks stays gathered as it is
    held, and so does the teacher's.  With the whole gradients of that this is ``cast``.  Without accumulation gradients
    come as activations go: ``gradients`` are what the end of a backward pass takes beyond its beginning.  A copy of the
    student where it is measured or saved is not counted.
    """
    shards, memory, strategy = run.train.parallel.shards, plan.memory, run.train.strategy
    if shards == 1:
        return plan
    whole = 0 if strategy.whole_model else memory.weights + memory.shared - memory.gradients
    sizes = {"gradients": memory.gradients, "optimizer": memory.optimizer}
    sizes["weights"] = memory.weights + memory.shared - whole
    sizes["teacher"] = (memory.teacher or 0) if strategy.needs_teacher else 0
    parts: dict[str, Any] = {name: -(-size // shards) for name, size in sizes.items()} | {"shared": 0}
    parts["weights"] += whole
    if memory.teacher is None and strategy.needs_teacher:
        parts["teacher"] = None
    if strategy.whole_model:
        item, held = ITEM_BYTES[plan.dtype], _held(model)
        trained = trained_nodes(model.graph, run.trains)
        beside = _adapter_values(run, model)
        values = {node.node.name: _weights(node) + beside.get(node.node.name, 0) for node in model.walk()}
        moving = {name: values[name] if name in trained else beside.get(name, 0) for name in values}
        outside = _outside_blocks(model)
        gathered = 2 * _largest_block(model, values) * item + sum(values[name] for name in outside) * held
        gathered += sum(moving[name] for name in outside) * held
        if teacher is not None and strategy.needs_teacher:
            theirs = {node.node.name: _weights(node) for node in teacher.walk()}
            size = sum(theirs[name] for name in _outside_blocks(teacher)) + _largest_block(teacher, theirs)
            gathered += size * ITEM_BYTES[teacher.dtype]
        parts["cast"] = gathered
        if run.train.accumulate == 1:
            passing = memory.activations + memory.logits + memory.working
            # the gradient of a block, and the buffer in which it is summed
            reduced = _largest_block(model, moving) * (item + held)
            parts["gradients"] = max(0, parts["gradients"] + reduced - passing)
    return attrs.evolve(plan, memory=attrs.evolve(memory, **parts))


def _adapter_values(run: Train, model: ModelPlan) -> dict[str, int]:
    """Values of the adapters of each node."""
    values: dict[str, int] = {}
    if run.train.lora is not None:
        matrices = adapted_matrices(model.graph, run.train.lora, trained_nodes(model.graph, run.trains))
        for name, weight in matrices.items():
            node = name.rpartition(".")[0]
            values[node] = values.get(node, 0) + run.train.lora.rank * sum(weight.shape)
    return values


def _largest_block(model: ModelPlan, values: Mapping[str, int]) -> int:
    """The most of some nodes' values in a block: those of a block processes gather as a whole."""
    regions = _regions(model, frozenset(_blocks(model.graph.topology)))
    return max((sum(values[node.node.name] for node in nodes) for nodes, _ in regions), default=0)


def _outside_blocks(model: ModelPlan) -> list[str]:
    """Names of the nodes that are in no block."""
    regions = _regions(model, frozenset(_blocks(model.graph.topology)))
    inside = {node.node.name for nodes, _ in regions for node in nodes}
    return [node.node.name for node in model.walk() if node.node.name not in inside]


def _weights(node: NodePlan) -> int:
    return sum(weight.numel for weight in node.weights.values() if weight.trainable)


def what_trains(settings: Training) -> tuple[str, ...]:
    """What trains, in words for tables: patterns, and those of adapters with their rank."""
    lora, trains = settings.lora, settings.trains
    if lora is None:
        return ("*",) if trains is None else trains
    return (*(trains or ()), *(f"{pattern} (rank {lora.rank})" for pattern in lora.targets))


def adapted_matrices(graph: Graph, settings: LoRA, trained: frozenset[str]) -> dict[str, Weight]:
    """The matrices that get an adapter, by dotted name."""
    chosen = trained_nodes(graph, settings.targets) - trained - {graph.embedder.name, graph.head.name}
    return {
        f"{name}.{weight}": declared
        for name, node in graph.nodes().items()
        if name in chosen
        for weight, declared in node.config.weights(node.width_in).items()
        if declared.trainable and len(declared.shape) == 2
    }


def with_adapters(
    plan: RunPlan, run: Train, load: Workload, model: ModelPlan, teacher: ModelPlan | None, own: frozenset[str]
) -> RunPlan:
    """The plan of a run with adapters, whose ``own`` weights are those of nodes that train or have changed before.

    The matrices beside them are the teacher's while it trains, and their sums are the student's own at its end.
    """
    assert run.train.lora is not None
    trained = trained_nodes(model.graph, run.trains)
    matrices = adapted_matrices(model.graph, run.train.lora, trained)
    applied = {node.node.name: node.node.applications for node in model.walk()}
    nodes = {name: name.rpartition(".")[0] for name in matrices}
    rank, beside = run.train.lora.rank, set(nodes.values())
    values = {name: rank * sum(weight.shape) for name, weight in matrices.items()}
    products = sum(2 * values[name] * model.context * applied[node] for name, node in nodes.items())
    narrow = sum(rank * model.context * applied[node] for node in nodes.values())
    theirs = (
        {}
        if teacher is None
        else {
            f"{node.node.name}.{name}": weight.shape for node in teacher.walk() for name, weight in node.weights.items()
        }
    )
    shared = sum(
        weight.numel * ITEM_BYTES[model.dtype]
        for name, weight in matrices.items()
        if own.isdisjoint((name, nodes[name])) and theirs.get(name) == weight.shape
    )
    memory = training_memory(plan.memory, model, load, trained, beside)
    trainable = sum(values.values()) * _held(model)
    scalars = 2 * len(matrices) * load.state_scalars * ITEM_BYTES["float32"]
    memory = attrs.evolve(
        memory,
        weights=memory.weights - shared + trainable,
        shared=memory.shared + shared,
        gradients=memory.gradients + trainable,
        optimizer=memory.optimizer + load.state_values * trainable + scalars,
        activations=memory.activations + narrow * load.batch_size * ITEM_BYTES[load.dtype],
        cast=memory.cast + (0 if load.dtype == "float32" else sum(values.values()) * ITEM_BYTES[load.dtype]),
    )
    sums_at_the_end = shared - memory.activations - memory.cast - memory.logits
    more = backward_operations(model, trained, beside) - backward_operations(model, trained) + 3 * products
    return attrs.evolve(
        plan,
        trains=what_trains(run.train),
        trained_parameters=plan.trained_parameters + sum(values.values()),
        operations=plan.operations + load.sequences * more,
        memory=attrs.evolve(memory, working=max(memory.working, sums_at_the_end)),
    )


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
