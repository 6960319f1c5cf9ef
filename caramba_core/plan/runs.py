"""What each run of a group needs: what trains, operations, and memory by what it is for.

Weights, gradients and optimizer state are exact.  Saved activations, logits and working memory are estimates of what a
pass holds at its peak; the allocator's own overhead comes on top.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import attrs

from caramba_core.component import Attention, Layer
from caramba_core.graph import matches
from caramba_core.manifest.schema import Evaluation, Group, Run, Train
from caramba_core.plan.figures import ITEM_BYTES, weight_bytes
from caramba_core.plan.nodes import ModelPlan, NodePlan, plan_model
from caramba_core.plan.teacher import TeacherPlan
from caramba_core.plugins.registry import registry

__all__ = ["Memory", "RunPlan", "Stage", "backward_operations", "plan_runs", "saved_bytes"]


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
        return (
            self.weights
            + (self.teacher or 0)
            + self.gradients
            + self.optimizer
            + self.activations
            + self.cast
            + self.logits
            + self.cache
            + self.working
        )


@attrs.frozen(kw_only=True)
class RunPlan:
    """One run.

    ``operations`` are of the whole run, teacher included where it is known; ``tokens`` those that it trains on.
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


@attrs.frozen(kw_only=True)
class Stage:
    """What the plans of a group's runs share: the student by context length, the teacher, and what converts."""

    model: ModelPlan
    teacher: TeacherPlan | None
    teacher_model: ModelPlan | None
    _models: dict[tuple[str, int], ModelPlan] = attrs.field(factory=dict)

    def student(self, context: int) -> ModelPlan:
        """The student's figures for sequences of this length."""
        return self._at("student", self.model, context)

    def teacher_at(self, context: int) -> ModelPlan | None:
        """The teacher's figures for sequences of this length."""
        return None if self.teacher_model is None else self._at("teacher", self.teacher_model, context)

    def _at(self, which: str, model: ModelPlan, context: int) -> ModelPlan:
        if model.context == context:
            return model
        if (which, context) not in self._models:
            self._models[which, context] = plan_model(model.graph, context=context, dtype=model.dtype)
        return self._models[which, context]


def plan_runs(group: Group, stage: Stage) -> tuple[RunPlan, ...]:
    """The plans of a group's runs, in order."""
    changed: dict[str, frozenset[str]] = {}
    converted = frozenset() if stage.teacher is None else stage.teacher.converted(stage.model.graph)
    plans = []
    for index, run in enumerate(group.runs):
        parent = run.from_ or (group.runs[index - 1].id if index else None)
        before = changed.get((parent or "").removeprefix(f"{group.name}/"), converted)
        trained = _trained(stage.model, run.train.trains) if run.train is not None else frozenset()
        refitted = _refitted(stage.model, converted) if run.start is not None and run.start.refit_mlp else frozenset()
        own = changed[run.id] = before | trained | refitted
        plans.append(_plan(run, group, stage, parent, trained, own))
    return tuple(plans)


def _plan(
    run: Run, group: Group, stage: Stage, parent: str | None, trained: frozenset[str], own: frozenset[str]
) -> RunPlan:
    weights, shared = _weights(stage, trained, own)
    teacher = None if stage.teacher_model is None else stage.teacher_model.total.weight_bytes
    known = Memory(weights=weights, shared=shared, teacher=0 if stage.teacher is None else teacher)
    settings = run.eval or group.eval or Evaluation()
    batch, context, dtype = settings.batch_size, settings.context, run.dtype
    tokens = operations = 0
    if run.train is not None:
        train, dtype = run.train, run.train.dtype
        batch, context = train.batch_size, train.context
        model = stage.student(context)
        sequences = (run.steps or 0) * train.accumulate * train.batch_size
        tokens = sequences * context
        passes = model.total.operations + backward_operations(model, trained)
        if train.strategy.needs_teacher and (teacher_at := stage.teacher_at(context)) is not None:
            passes += teacher_at.total.operations
        operations = sequences * passes
        memory = _training(known, model, train, trained)
    else:
        if run.task == "convert" and run.start is not None:
            batch, context = run.start.batch_size, run.start.max_context
        elif run.task == "generate":
            batch, context = 1, run.max_new_tokens
        memory = _forward(known, stage.student(context), run.mode, batch, dtype)
    return RunPlan(
        id=run.id,
        mode=run.mode,
        continues=parent,
        trains=() if run.train is None else run.train.trains,
        trained_parameters=sum(n.own.parameters for n in stage.model.walk() if n.node.name in trained),
        dtype=dtype,
        batch_size=batch,
        context=context,
        tokens=tokens,
        operations=operations,
        memory=memory,
    )


# ------------------------------------------------------------------------------------------------ what is held


def _refitted(model: ModelPlan, converted: frozenset[str]) -> frozenset[str]:
    """Weights that ``start.refit_mlp`` replaces: those of the layers behind the first attention that converts."""
    found: set[str] = set()
    behind = False
    for plan in model.walk():
        config = plan.node.config
        behind = behind or plan.node.name in converted
        if behind and isinstance(config, Layer) and not isinstance(config, Attention) and config.output_weights:
            found.update(f"{plan.node.name}.{weight}" for weight in config.output_weights if weight in plan.weights)
    return frozenset(found)


def _weights(stage: Stage, trained: Collection[str], own: frozenset[str]) -> tuple[int, int]:
    """Bytes of the student's own weights, and of those whose storage is the teacher's; ``own`` names nodes or weights.

    A weight is shared where it does not train, has not changed since the start, does not belong to an attention that
    converts, and the teacher has one of the same name and shape; weights that train are held in float32 at least.
    """
    theirs = {} if stage.teacher_model is None else _shapes(stage.teacher_model)
    held = shared = 0
    for node in stage.model.walk():
        name = node.node.name
        for weight_name, weight in node.weights.items():
            size = weight_bytes(weight, _train_dtype(stage.model.dtype) if name in trained else stage.model.dtype)
            kept = not own.intersection((name, f"{name}.{weight_name}"))
            if weight.trainable and kept and theirs.get(f"{name}.{weight_name}") == weight.shape:
                shared += size
            else:
                held += size
    return held, shared


def _shapes(model: ModelPlan) -> dict[str, tuple[int, ...]]:
    return {
        f"{node.node.name}.{name}": weight.shape
        for node in model.walk()
        for name, weight in node.weights.items()
        if weight.trainable
    }


def _train_dtype(dtype: str) -> str:
    """The type of weights that train."""
    return "float32" if dtype in ("bfloat16", "float16") else dtype


def _training(known: Memory, model: ModelPlan, train: Train, trained: Collection[str]) -> Memory:
    optimizer: Any = train.optimizer or registry().default("optimizer")
    gradients = state = cast = 0
    for node in model.walk():
        if node.node.name in trained:
            for weight in node.weights.values():
                if weight.trainable:
                    size = weight_bytes(weight, _train_dtype(model.dtype))
                    gradients += size
                    state += optimizer.state_values() * size + optimizer.state_scalars() * ITEM_BYTES["float32"]
                    if train.dtype != "float32" and len(weight.shape) > 1:
                        cast += weight.numel * ITEM_BYTES[train.dtype]
    saved = saved_bytes(model, trained, train.dtype)
    kept = sum(saved) if train.strategy.whole_model else max(saved, default=0)
    rows = train.batch_size * train.context
    return attrs.evolve(
        known,
        gradients=gradients,
        optimizer=state,
        activations=kept * train.batch_size,
        cast=cast,
        logits=train.strategy.logit_values(rows, model.graph.vocab_size) * 4,
        working=max(saved, default=0) * train.batch_size,
    )


def _forward(known: Memory, model: ModelPlan, mode: str, batch: int, dtype: str) -> Memory:
    """A run without gradients: the largest node's values, and the cache where tokens are generated."""
    largest = max((node.own.saved // node.node.applications for node in model.walk()), default=0)
    return attrs.evolve(
        known,
        working=largest * batch * ITEM_BYTES[dtype],
        cache=model.total.context_bytes * batch if mode == "generate" else 0,
    )


# ------------------------------------------------------------------------------------------------ what trains


def _trained(model: ModelPlan, patterns: Sequence[str]) -> frozenset[str]:
    """Names of the nodes that the patterns choose."""
    names = [node.node.name for node in model.walk() if not node.node.inline]
    return frozenset(name for name in names if any(matches(name, pattern) for pattern in patterns))


def saved_bytes(model: ModelPlan, trained: Collection[str], dtype: str) -> list[int]:
    """Bytes that each node keeps for the backward pass of one sequence, from the first node that trains on.

    Under autocast (``dtype`` bfloat16 or float16) nodes with matrices compute in that type, norms and the like in the
    type of the residual stream, which is the embedder's.  Frozen nodes keep a little less than is counted here.
    """
    stream = _train_dtype(model.dtype) if model.graph.embedder.name in trained else model.dtype
    kept = []
    for node, flows, trains in _gradients(model, trained):
        if flows or trains:
            matrices = any(len(weight.shape) > 1 for weight in node.weights.values()) or node.node is model.graph.head
            kept.append(node.own.saved * ITEM_BYTES[dtype if matrices else stream])
    return kept


def backward_operations(model: ModelPlan, trained: Collection[str]) -> int:
    """Operations of the backward pass of one sequence.

    A product with a weight takes as much again for the gradient of its input, where anything before it trains, and for
    that of the weight, where it trains itself; a product of two activations takes twice.
    """
    total = 0
    for node, flows, trains in _gradients(model, trained):
        weighted = _weight_operations(node, model)
        if flows or trains:
            total += 2 * (node.own.operations - weighted) + weighted * (flows + trains)
    return total


def _gradients(model: ModelPlan, trained: Collection[str]) -> list[tuple[NodePlan, bool, bool]]:
    """Every node, whether a gradient reaches its input, and whether its weights train."""
    tied = model.graph.tied_embeddings and model.graph.embedder.name in trained
    flows, found = False, []
    for node in model.walk():
        trains = node.node.name in trained and node.own.parameters > 0
        if node.node is model.graph.head:
            trains = trains or tied
        found.append((node, flows, trains))
        flows = flows or trains
    return found


def _weight_operations(node: NodePlan, model: ModelPlan) -> int:
    """The part of a node's operations that are products with its weights."""
    if node.node is model.graph.head:
        return node.own.operations
    matrices = sum(w.numel for w in node.weights.values() if w.trainable and len(w.shape) > 1)
    return min(node.own.operations, 2 * model.context * matrices * node.node.applications)
