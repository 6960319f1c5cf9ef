"""What a conversion holds and computes, for plans (light)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs

from caramba_core.components import ITEM_BYTES, Attention, Layer
from caramba_plugins_upcycle.moments import QUERIES
from caramba_plugins_upcycle.transplant import Transplant, find_transplants

if TYPE_CHECKING:
    from caramba_core.graph import Node
    from caramba_core.plan import ModelPlan, RunPlan
    from caramba_core.sites import Site
    from caramba_plugins_upcycle.modes import Start

__all__ = ["with_calibration"]


def with_calibration(
    plan: RunPlan, settings: Start, model: ModelPlan, teacher: ModelPlan | None, sites: tuple[Site, ...]
) -> RunPlan:
    """The plan of a run that takes calibration windows through both models side by side.

    ``activations`` are the hidden states of all windows: in front of a stage in both models, of the attention there
    what both read and what the teacher's gives.  ``working`` is what the dearest step holds of one batch, or of one
    layer's equations.  What a transplant refines on its own is not counted as operations.  Where the teacher is not
    known, the student's attentions stand for its own, and nothing is refined.
    """
    sources = [site.teacher for site in sites] if teacher is not None else list(model.graph.attentions().values())
    context = min(plan.context, settings.tokens)
    windows = settings.tokens // context
    batch = min(settings.batch_size, windows) * context
    width, held = model.graph.d_model, ITEM_BYTES[model.dtype]
    states = windows * context * width
    activations = states * (4 * held + _wide(model)) if len(sources) > 1 else states * (2 * held + _wide(model))
    working = [plan.memory.shared - activations]  # a student is built whole before it shares the teacher's weights
    for source in sources:
        working += _of_attention(source, batch, context, _wide(model))
    for transplant, own in find_transplants(sites, settings.transplant) if settings.refine and sites else ():
        working += (_of_refinement(transplant, site, windows * context, batch, context) for site in own)
    for node in model.graph.walk() if settings.refit_mlp else ():
        behind = (
            isinstance(node.config, Layer) and not isinstance(node.config, Attention) and node.config.output_weights
        )
        if behind:
            left = states * 3 * held - activations
            working.append(left + _of_refit(_mixed(node), batch, width, item=_wide(model)))
    memory = attrs.evolve(plan.memory, activations=activations, working=max(working))
    operations = windows * _operations(settings, model, teacher, sites, context)
    return attrs.evolve(plan, memory=memory, operations=operations)


def _wide(model: ModelPlan) -> int:
    """Bytes of a value of what is spelled out: float32 at least."""
    return max(ITEM_BYTES["float32"], ITEM_BYTES[model.dtype])


def _sizes(source: Node) -> tuple[int, int]:
    """Values of all heads' queries, and of all keys."""
    heads, keys, width = (getattr(source.config, name, 0) for name in ("n_heads", "n_kv_heads", "head_dim"))
    return heads * width, keys * width


def _of_attention(source: Node, batch: int, context: int, item: int) -> Iterator[int]:
    """Bytes beside hidden states: of a probe, of the moments of a batch, of the closed form, of the refit."""
    queries, keys = _sizes(source)
    heads, width = getattr(source.config, "n_heads", 0), source.width_in
    probabilities = batch * heads * context * item
    weights = sum(weight.numel for weight in source.config.weights(width).values())
    seen = batch * (width + queries + 2 * keys)
    yield 2 * probabilities + (seen + batch * (queries + 2 * queries + keys) + weights) * item
    some = batch // context * heads * min(QUERIES, context)
    copied = some * context * item if context > QUERIES else 0
    yield probabilities + (seen + batch * (queries + width)) * item + copied + some * keys * (item + 8)
    yield weights * (item + 3 * 8)
    yield _of_refit(queries, batch, width, item=8)


def _of_refinement(transplant: Transplant, site: Site, tokens: int, batch: int, context: int) -> int:
    """Bytes of a transplant's own least squares."""
    source, target = site.teacher.config, site.student.config
    assert isinstance(source, Attention)
    assert isinstance(target, Attention)
    sizes = {"tokens": tokens, "batch": batch, "context": context}
    return transplant.refine_bytes(source, target, site.student.width_in, **sizes)


def _of_refit(mixed: int, batch: int, width: int, *, item: int) -> int:
    """Bytes of the equations of a refit in float64, or of them and a batch that is multiplied out."""
    gram, cross = mixed * mixed * 8, mixed * width * 8
    return gram + 2 * cross + max(3 * gram + 2 * cross, batch * (2 * mixed + width) * item + gram)


def _mixed(node: Node) -> int:
    """What the output projection of a layer reads."""
    config = node.config
    assert isinstance(config, Layer)
    projection = config.weights(node.width_in)[(config.output_weights or ("",))[0]]
    return projection.shape[-1]


def _operations(
    settings: Start, model: ModelPlan, teacher: ModelPlan | None, sites: tuple[Site, ...], context: int
) -> int:
    """Of one window: both models without their heads, probes, moments and refits."""
    total = sum(each.at(context).roots[1].total.operations for each in (model, teacher) if each is not None)
    if teacher is None:
        return total
    theirs = {node.node.name: node.own.operations for node in teacher.at(context).walk()}
    for transplant, own in find_transplants(sites, settings.transplant):
        surveyed = transplant.survey(own).values()
        for site in own:
            source, target = site.teacher.config, site.student.config
            assert isinstance(source, Attention)
            assert isinstance(target, Attention)
            total += theirs[site.teacher.name] * (2 if surveyed else 1)
            wanted = (*transplant.moments(source, target).values(), *surveyed)
            total += sum(moment.operations(source, context) for moment in wanted)
            mixed, width = _sizes(site.teacher)[0], site.student.width_in
            total += 2 * context * mixed * (mixed + width) if settings.refit else 0
    for node in model.graph.walk() if settings.refit_mlp else ():
        if isinstance(node.config, Layer) and not isinstance(node.config, Attention) and node.config.output_weights:
            mixed = _mixed(node)
            total += 2 * context * mixed * (mixed + node.width_in)
    return total
