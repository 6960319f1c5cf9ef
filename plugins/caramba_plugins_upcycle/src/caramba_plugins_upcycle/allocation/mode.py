"""Running mode ``allocate``: divide ``start.cache_budget`` among the layers and write the manifest that says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
from caramba_document.writing import dump

from caramba_core.components import Attention, evolve
from caramba_core.errors import InputError
from caramba_core.modes import Results
from caramba_core.run.context import RunContext
from caramba_plugins_upcycle.allocation.budget import allocate, part_of_the_way
from caramba_plugins_upcycle.allocation.sensitivity import measure_sensitivities
from caramba_plugins_upcycle.convert import calibration_batches
from caramba_plugins_upcycle.modes import Allocate, Start
from caramba_plugins_upcycle.stages import stages

__all__ = ["AllocateRunner", "measured"]

_MEASURED_TOKENS = 4096


class AllocateRunner:
    """Artifacts: ``allocation.json`` (every curve) and ``allocated.yml``, the group with its sizes by layer."""

    def __init__(self, run: Allocate, context: RunContext) -> None:
        self.settings = run.start
        self.context = context

    def run(self) -> Results:
        """Measure what each size costs, and divide the budget."""
        context, settings = self.context, self.settings
        assert settings.cache_budget is not None  # the mode needs one
        share = float(settings.cache_budget.removesuffix("x"))
        budget = int(share * sum(_cached(site.teacher.config, site.teacher.width_in) for site in context.sites))
        batches = calibration_batches(context, settings)
        tokens = sum(batch.numel() for batch in batches)
        measuring, skip = measured(settings)
        looked = calibration_batches(context, measuring, skip=skip)
        context.reporter.stage(
            f"allocate {context.name}",
            f"{budget:,} cached values a token for {len(context.sites)} attentions, by divergence on "
            f"{sum(batch.numel() for batch in looked):,} tokens; nothing trains",
        )
        with context.reporter.bar(context.name, tokens * sum(1 for _ in stages(context.teacher))) as bar:
            curves = measure_sensitivities(
                teacher=context.teacher,
                sites=context.sites,
                settings=settings,
                calibration=batches,
                measured=looked,
                progress=bar.advance,
            )
        try:
            best, _ = allocate(curves, budget)
            sizes, loss = part_of_the_way(curves, best, budget, settings.allocation_step)
        except ValueError as error:
            raise InputError(f"start.cache_budget: {settings.cache_budget} is too small: {error}") from error
        chosen: dict[str, dict[str, int]] = {}
        for curve, size in zip(curves, sizes, strict=True):
            chosen.setdefault(curve.site, {})[curve.field] = size
        context.directory.write_json(
            "allocation.json",
            {
                "cache_budget": settings.cache_budget,
                "cached_values": budget,
                "predicted_divergence": loss,
                "uniform_divergence": sum(curve.losses[curve.sizes.index(curve.own)] for curve in curves),
                "sizes": chosen,
                "curves": [attrs.asdict(curve) for curve in curves],
            },
        )
        loaded = context.shared.loaded
        document = loaded.resolved_group(context.group.name)
        _find_from_anywhere(document["groups"][0], loaded.folder)
        _set_sizes(document, context.run.id, chosen)
        context.directory.write_text("allocated.yml", dump(document))
        context.reporter.line(f"sizes by layer: {context.directory.path / 'allocated.yml'}")
        return Results(entries={"calibration_tokens": tokens, "cached_values": sum(sizes)})


def measured(settings: Start) -> tuple[Start, int]:
    """How windows are drawn for measuring, and how many come before them: those of the calibration."""
    length = min(settings.max_context, settings.tokens)
    count = max(1, settings.tokens // length)
    windows = max(1, min(_MEASURED_TOKENS, count * length // 4) // length)
    return evolve(settings, tokens=windows * length), count


def _cached(config: Any, width: int) -> int:
    assert isinstance(config, Attention)
    return sum(entry.values for entry in config.cache_spec(width).values() if entry.per_token)


def _set_sizes(document: dict[str, Any], run: str, chosen: Mapping[str, Mapping[str, int]]) -> None:
    """Leave the allocating run out of a manifest, and give its repeated blocks sizes by repetition (``each``)."""
    (group,) = document["groups"]
    group["runs"] = [each for each in group["runs"] if each["id"] != run]
    holders = list(_repeated(document["model"], len(chosen)))
    if not holders:
        raise InputError(
            "the sizes cannot be written: the attentions do not stand in one repeated block",
            hint=f"the chosen sizes stand in allocation.json: {len(chosen)} layers",
        )
    fields = next(iter(chosen.values())).keys()
    role = next(iter(chosen)).rpartition(".")[2]
    for holder in holders:
        each = {f"{role}.{field}": [sizes[field] for sizes in chosen.values()] for field in fields}
        holder["each"] = {**holder.get("each", {}), **each}


def _repeated(node: Any, count: int) -> Iterator[dict[str, Any]]:
    """Every mapping in ``node`` that repeats its layers ``count`` times."""
    if isinstance(node, dict):
        if node.get("repeat") == count:
            yield node
        node = list(node.values())
    for item in node if isinstance(node, list) else ():
        yield from _repeated(item, count)


def _find_from_anywhere(group: dict[str, Any], folder: Path) -> None:
    """Make the names of files below teacher and data absolute paths: the new manifest lies in another folder."""

    def absolute(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: absolute(item) for key, item in value.items()}
        if isinstance(value, list):
            return [absolute(item) for item in value]
        return str(folder.resolve() / value) if isinstance(value, str) and (folder / value).exists() else value

    group.update({key: absolute(group[key]) for key in ("teacher", "data") if key in group})
