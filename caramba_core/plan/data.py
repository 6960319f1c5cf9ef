"""A plan as plain data: ``plan.json`` and ``caramba compile --json``.

    name, group             of the manifest and the group
    context, dtype          the sequence length and the type of weights and cache that figures are stated for
    model                   parameters, buffers, weight_bytes, operations_per_token, cache, nodes
    teacher                 null, or source, dtype, local, reason, and where it is local parameters, weight_bytes, cache
    runs                    id, mode, what trains, tokens, operations, memory (bytes by purpose, and their total)
    sections                the tables that plugins add: title, columns, rows

``operations_per_token`` are floating-point operations of matrix products, a multiply-add counted as two: ``forward``
as ``torch.utils.flop_counter`` counts, ``forward_causal`` only the pairs that a causal mask keeps, ``training`` forward
and backward with every weight training, ``decoding`` one more token with ``context`` cached.  Of a cache that holds
``context`` tokens, ``bytes_at_context`` is the whole, ``state_bytes`` what is kept once per sequence, and
``bytes_per_token`` the rest divided by ``context``; ``values_per_token`` are those of a token that every window still
holds.  Equal bodies of a
topology stand once in ``scopes``, with the ``names`` of all.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs

from caramba_core.components import Storage
from caramba_core.errors import PluginError
from caramba_core.hookspecs import Section
from caramba_core.plan.nodes import ModelPlan, NodePlan, per_token
from caramba_core.plan.runs import RunPlan, backward_operations
from caramba_core.plugins.registry import registry

if TYPE_CHECKING:
    from caramba_core.plan.planning import Plan

__all__ = ["operations_per_token", "plan_document", "plan_sections", "quantized_cache", "training_operations"]


def plan_document(plan: Plan) -> dict[str, Any]:
    """The whole plan, with the tables that plugins add."""
    teacher = plan.teacher
    return {
        "name": plan.name,
        "group": plan.group,
        "context": plan.model.context,
        "dtype": plan.model.dtype,
        "model": {**_model(plan.model), "nodes": [_node(root, plan.model) for root in plan.model.roots]},
        "teacher": teacher
        and {
            "source": teacher.source,
            "dtype": teacher.dtype,
            "local": teacher.model is not None,
            "reason": teacher.reason,
            **({} if teacher.model is None else _model(teacher.model)),
        },
        "runs": [_run(run) for run in plan.runs],
        "sections": [section.data() for section in plan_sections(plan)],
    }


def plan_sections(plan: Plan) -> list[Section]:
    """The tables that plugins add to a plan."""
    return [section for sections in registry().hooks.plan_sections(plan=plan) for section in sections]


def training_operations(model: ModelPlan) -> int:
    """Operations of a forward and backward pass over one sequence in which every weight trains."""
    return model.total.operations + backward_operations(model, {node.node.name for node in model.walk()})


def operations_per_token(model: ModelPlan) -> dict[str, float]:
    """Operations per token by what is done, as the module's docstring defines them."""
    total = model.total
    return {
        "forward": _whole(total.operations / model.context),
        "forward_causal": _whole(total.causal_operations / model.context),
        "training": _whole(training_operations(model) / model.context),
        "decoding": total.decoding_operations,
    }


def quantized_cache(model: ModelPlan) -> dict[str, dict[str, float]]:
    """Bytes of the cache in each installed storage: per token of the context, and of all of it."""
    found = {}
    for entry in registry().entries("storage"):
        with suppress(PluginError):  # a broken one is no business of a model that does not use it
            storage: Storage = registry().load(entry)()
            once, whole = (model.cached_bytes(tokens, storage) for tokens in (0, model.context))
            found[entry.name] = {
                "bytes_per_token": per_token(whole - once, model.context),
                "bytes_at_context": whole,
            }
    return found


def _model(model: ModelPlan) -> dict[str, Any]:
    total = model.total
    return {
        "parameters": total.parameters,
        "buffers": total.buffers,
        "weight_bytes": total.weight_bytes,
        "operations_per_token": operations_per_token(model),
        "cache": {
            "values_per_token": total.cache_values,
            "bytes_per_token": total.cache_bytes,
            "state_bytes": total.state_bytes,
            "bytes_at_context": total.context_bytes,
            "quantized": quantized_cache(model),
        },
    }


def _node(node: NodePlan, model: ModelPlan) -> dict[str, Any]:
    place, total = node.node, node.total
    data: dict[str, Any] = {
        "name": place.name,
        "type": node.type,
        "inline": place.inline,
        "width_in": place.width_in,
        "width_out": place.width_out,
        "applications": place.applications,
        "parameters": total.parameters,
        "buffers": total.buffers,
        "operations_per_token": _whole(total.operations / model.context),
        "saved_values_per_token": _whole(total.saved / model.context),
        "cache_bytes_per_token": total.cache_bytes,
    }
    if node.weights:
        data["weights"] = {name: list(weight.shape) for name, weight in node.weights.items()}
    if node.cache:
        data["cache"] = {name: attrs.asdict(entry) for name, entry in node.cache.items()}
    if node.storage is not None:
        data["storage"] = registry().name_of(type(node.storage))
    if node.scopes:
        data["scopes"] = [
            {
                "names": [scope.name for scope in scopes],
                "applications": scopes[0].applications,
                "nodes": [_node(child, model) for child in scopes[0].nodes],
            }
            for scopes in node.alike()
        ]
    return data


def _run(run: RunPlan) -> dict[str, Any]:
    memory = {**attrs.asdict(run.memory), "total": run.memory.total}
    return {**attrs.asdict(run), "trains": list(run.trains), "memory": memory}


def _whole(number: float) -> float | int:
    """An integer where it is one."""
    return int(number) if number == int(number) else number
