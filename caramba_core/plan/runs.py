"""What each run of a group needs: what trains, operations, and memory by what it is for.

Weights, gradients and optimizer state are exact.  Saved activations, logits and working memory are estimates of what a
pass holds at its peak; the allocator's own overhead comes on top.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import attrs

from caramba_core.components import ITEM_BYTES, Weight
from caramba_core.graph import trained_nodes
from caramba_core.manifest.schema import Group
from caramba_core.modes import Evaluation, Run, Workload
from caramba_core.plan.nodes import ModelPlan, NodePlan, weight_bytes
from caramba_core.sites import own_attentions

__all__ = ["Memory", "RunPlan", "TeacherPlan", "backward_operations", "plan_runs", "saved_bytes", "training_memory"]


@attrs.frozen(kw_only=True)
class Memory:
    """Bytes that a run holds at its peak.

    ``weights`` are the student's own; ``shared`` of the student's are the teacher's and counted there.  ``teacher`` is
    ``None`` where its checkpoint is not on this machine.  ``cast`` are the copies that autocast makes of weights that
    train.  ``working`` is what the largest node of a pass holds beside what is saved.
    """

    weights: int
    shared: int
    teacher: int | None
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    cast: int = 0
    logits: int = 0
    cache: int = 0
    working: int = 0

    @property
    def total(self) -> int:
        """All of it; without the teacher where that is not known."""
        return sum(count or 0 for purpose, count in attrs.asdict(self).items() if purpose != "shared")


@attrs.frozen(kw_only=True)
class RunPlan:
    """One run.

    ``operations`` are of the whole run, teacher included where it is known; ``tokens`` those that it trains on;
    ``files`` the most bytes of files beside its checkpoints.
    """

    id: str
    mode: str
    continues: str | None
    trains: tuple[str, ...]
    trained_parameters: int
    dtype: str
    batch_size: int
    context: int
    tokens: int
    operations: int
    memory: Memory
    files: int = 0


@attrs.frozen(kw_only=True)
class TeacherPlan:
    """What is known of a teacher; ``model`` is ``None`` where its checkpoint is not on this machine, ``reason`` why."""

    source: str
    dtype: str
    model: ModelPlan | None = None
    reason: str | None = None


def plan_runs(group: Group, model: ModelPlan, teacher: TeacherPlan | None) -> tuple[RunPlan, ...]:
    """The plans of a group's runs, in order."""
    taught = None if teacher is None else teacher.model
    size = None if taught is None else taught.total.weight_bytes
    known = Memory(weights=0, shared=0, teacher=0 if teacher is None else size)
    converted = own_attentions(model.graph, None if taught is None else taught.graph)
    changed: dict[str, frozenset[str]] = {}
    plans = []
    for index, run in enumerate(group.runs):
        parent = run.from_ or (group.runs[index - 1].id if index else None)
        trained = trained_nodes(model.graph, run.trains)
        before = changed.get((parent or "").removeprefix(f"{group.name}/"), converted)
        own = changed[run.id] = before | trained | run.changes(model.graph, converted)
        weights, shared = _weights(model, taught, trained, own)
        memory = attrs.evolve(known, weights=weights, shared=shared)
        plan = _plan(run, group.evaluation(run), model, taught, parent, trained, memory)
        plans.append(run.planned(plan, model.at(plan.context), taught, before | trained))
    return tuple(plans)


def _plan(
    run: Run,
    evaluation: Evaluation,
    model: ModelPlan,
    teacher: ModelPlan | None,
    parent: str | None,
    trained: frozenset[str],
    memory: Memory,
) -> RunPlan:
    load = run.workload(evaluation, model.graph.vocab_size)
    model = model.at(load.context)
    passes = model.total.operations + backward_operations(model, trained)
    if load.uses_teacher and teacher is not None:
        passes += teacher.at(load.context).total.operations
    return RunPlan(
        id=run.id,
        mode=run.mode,
        continues=parent,
        trains=run.trains,
        trained_parameters=sum(n.own.parameters for n in model.walk() if n.node.name in trained),
        dtype=load.dtype,
        batch_size=load.batch_size,
        context=load.context,
        tokens=load.sequences * load.context,
        operations=load.sequences * passes,
        memory=training_memory(memory, model, load, trained) if trained else _forward(memory, model, load, evaluation),
    )


# ------------------------------------------------------------------------------------------------ what is held


def _weights(
    model: ModelPlan, teacher: ModelPlan | None, trained: Collection[str], own: frozenset[str]
) -> tuple[int, int]:
    """Bytes of the student's own weights, and of those whose storage is the teacher's; ``own`` names nodes or weights.

    A weight is shared where it does not train, has not changed since the start, does not belong to an attention that
    converts, and the teacher has one of the same name and shape; weights that train are held in float32 at least.
    """
    theirs = {} if teacher is None else {name: weight.shape for name, weight in _weights_by_name(teacher)}
    held = shared = 0
    for name, weight in _weights_by_name(model):
        node = name.rpartition(".")[0]
        size = weight_bytes(weight, _train_dtype(model.dtype) if node in trained else model.dtype)
        if weight.trainable and own.isdisjoint((node, name)) and theirs.get(name) == weight.shape:
            shared += size
        else:
            held += size
    return held, shared


def _weights_by_name(model: ModelPlan) -> Iterator[tuple[str, Weight]]:
    for node in model.walk():
        for name, weight in node.weights.items():
            yield f"{node.node.name}.{name}", weight


def _train_dtype(dtype: str) -> str:
    """The type of weights that train."""
    return "float32" if dtype in ("bfloat16", "float16") else dtype


def training_memory(
    known: Memory, model: ModelPlan, load: Workload, trained: Collection[str], beside: Collection[str] = ()
) -> Memory:
    """What is known, and what holds as ``trained`` nodes train, and something ``beside`` the weights of others."""
    weights = [w for name, w in _weights_by_name(model) if w.trainable and name.rpartition(".")[0] in trained]
    gradients = sum(weight_bytes(weight, _train_dtype(model.dtype)) for weight in weights)
    matrices = sum(weight.numel for weight in weights if len(weight.shape) > 1)
    saved = saved_bytes(model, trained, load.dtype, beside).values()
    kept = sum(saved) if load.whole_model else max(saved, default=0)
    ids = ITEM_BYTES["int64"] * load.batches * load.batch_size * (load.context + 1)
    return attrs.evolve(
        known,
        gradients=gradients,
        optimizer=load.state_values * gradients + load.state_scalars * ITEM_BYTES["float32"] * len(weights),
        activations=kept * load.batch_size,
        cast=0 if load.dtype == "float32" else matrices * ITEM_BYTES[load.dtype],
        logits=load.logit_values * ITEM_BYTES["float32"],
        working=max(saved, default=0) * load.batch_size + ids,
    )


def _forward(known: Memory, model: ModelPlan, load: Workload, evaluation: Evaluation) -> Memory:
    """A run without gradients: the largest node's values, and the cache where tokens are generated."""
    largest = max((node.own.saved // node.node.applications for node in model.walk()), default=0)
    cached = model.cached_bytes(load.context, evaluation.cache) if load.caches else 0
    return attrs.evolve(
        known, working=largest * load.batch_size * ITEM_BYTES[load.dtype], cache=cached * load.batch_size
    )


# ------------------------------------------------------------------------------------------------ what trains


def saved_bytes(model: ModelPlan, trained: Collection[str], dtype: str, beside: Collection[str] = ()) -> dict[str, int]:
    """Bytes that each node keeps for the backward pass of one sequence, from the first node that trains on.

    All of it is of the type ``dtype`` of the computation.  Frozen nodes keep a little less than is counted here.
    """
    nodes = (node for node, _, _ in _gradients(model, trained, beside))
    return {node.node.name: node.own.saved * ITEM_BYTES[dtype] for node in nodes}


def backward_operations(model: ModelPlan, trained: Collection[str], beside: Collection[str] = ()) -> int:
    """Operations of the backward pass of one sequence.

    A product with a weight takes as much again for the gradient of its input, where anything before it trains, and for
    that of the weight, where it trains itself; a product of two activations takes twice.
    """
    total = 0
    for node, flows, trains in _gradients(model, trained, beside):
        weighted = _weight_operations(node, model)
        total += 2 * (node.own.operations - weighted) + weighted * (flows + trains)
    return total


def _gradients(
    model: ModelPlan, trained: Collection[str], beside: Collection[str]
) -> list[tuple[NodePlan, bool, bool]]:
    """Nodes with a backward pass: whether a gradient goes on to what is before them, and whether their weights train.

    Something trains ``beside`` the weights of some that stay as they are.
    """
    tied = model.graph.tied_embeddings and model.graph.embedder.name in trained
    flows, found = False, []
    for node in model.walk():
        trains = node.node.name in trained and node.own.parameters > 0
        if node.node is model.graph.head:
            trains = trains or tied
        if reached := flows or trains or node.node.name in beside:
            found.append((node, flows, trains))
        flows = reached
    return found


def _weight_operations(node: NodePlan, model: ModelPlan) -> int:
    """The part of a node's operations that are products with its weights."""
    if node.node is model.graph.head:
        return node.own.operations
    matrices = sum(w.numel for w in node.weights.values() if w.trainable and len(w.shape) > 1)
    return min(node.own.operations, 2 * model.context * matrices * node.node.applications)
