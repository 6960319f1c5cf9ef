"""Running mode ``allocate``: divide a budget of cached bytes among the layers and write the manifest that says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from caramba_document.writing import dump

from caramba_core.components import Attention, Storage, evolve
from caramba_core.errors import InputError
from caramba_core.modes import Results
from caramba_core.plugins.registry import registry
from caramba_core.run.context import RunContext
from caramba_core.run.written import lead_from
from caramba_plugins_upcycle.allocation.budget import Choice, Place, divide, held_bytes, part_of_the_way
from caramba_plugins_upcycle.allocation.sensitivity import measure_sensitivities
from caramba_plugins_upcycle.allocation.writing import set_attentions, written
from caramba_plugins_upcycle.convert import calibration_batches
from caramba_plugins_upcycle.modes import Allocate, Start
from caramba_plugins_upcycle.stages import stages

__all__ = ["AllocateRunner", "measured"]

_MEASURED_TOKENS = 4096


class AllocateRunner:
    """Artifacts: ``allocation.json`` (what was measured and chosen) and ``allocated.yml``, the group that says so."""

    def __init__(self, run: Allocate, context: RunContext) -> None:
        self.run_settings, self.settings = run, run.start
        self.context = context

    def run(self) -> Results:
        """Measure what each way to cache a layer costs, and divide the budget."""
        context, settings = self.context, self.settings
        length = min(settings.max_context, settings.tokens)
        budget = self._budget(length)
        batches = calibration_batches(context, settings)
        tokens = sum(batch.numel() for batch in batches)
        measuring, skip = measured(settings)
        looked = calibration_batches(context, measuring, skip=skip)
        context.reporter.stage(
            f"allocate {context.name}",
            f"{budget / length:,.0f} cached bytes per token for {len(context.sites)} attentions, by divergence on "
            f"{sum(batch.numel() for batch in looked):,} tokens, and on as many of texts that say their first half "
            "again; nothing trains",
        )
        storages: Sequence[Storage | None] = self.run_settings.caches or (None,)
        with context.reporter.bar(context.name, tokens * sum(1 for _ in stages(context.teacher))) as bar:
            found = measure_sensitivities(
                teacher=context.teacher,
                sites=context.sites,
                candidates={site.name: self.run_settings.candidates(site) for site in context.sites},
                storages=storages,
                settings=settings,
                calibration=batches,
                measured=looked,
                progress=bar.advance,
            )
        places = [
            Place(
                width=site.student.width_in,
                applications=site.student.applications,
                context=length,
                candidates=found[site.name],
                storages=storages,
            )
            for site in context.sites
        ]
        try:
            best = divide([place.choices() for place in places], budget)
            choices = part_of_the_way(places, best, budget, self.run_settings.allocation_step)
        except ValueError as error:
            asked = self.run_settings.cache_budget
            raise InputError(
                f"cache_budget: {asked} is too small: {error} at {length:,} tokens",
                hint="give more, caches of fewer bits, or allocation_step: 1, which may leave equal shares altogether",
            ) from error
        chosen = {
            site.name: evolve(_config(place, choice), name=site.student.config.name)
            for site, place, choice in zip(context.sites, places, choices, strict=True)
        }
        for place, choice, config in zip(places, choices, chosen.values(), strict=True):
            assert choice.bytes == place.bytes_of(config, None), "bytes of one size do not depend on another's"
        self._write(length, budget, places, choices, chosen)
        used = sum(choice.bytes for choice in choices)
        return Results(entries={"calibration_tokens": tokens, "cached_bytes": round(used / length, 3)})

    def _budget(self, length: int) -> int:
        """Bytes of a sequence of ``length`` tokens that the attentions in question may cache."""
        context, asked = self.context, self.run_settings.cache_budget
        assert context.shared.source is not None  # the mode needs a teacher
        held = [
            {name: _held(node, length) for name, node in graph.attentions().items()}
            for graph in (context.shared.source.graph, context.graph)
        ]
        teacher, student = held
        whole = float(asked.removesuffix("x")) * sum(teacher.values()) if asked.endswith("x") else 0.0
        if not whole:
            whole = float(asked.removesuffix("B").strip()) * length
        return int(whole) - sum(student[name] for name in student.keys() - {site.name for site in context.sites})

    def _write(
        self,
        length: int,
        budget: int,
        places: Sequence[Place],
        choices: Sequence[Choice],
        chosen: Mapping[str, Attention],
    ) -> None:
        context = self.context
        layers = {
            name: {
                "attention": written(config),
                "bytes_per_token": choice.bytes / length,
                "predicted_divergence": choice.loss,
                "measured": [
                    {
                        "attention": written(one.config),
                        "divergence": one.divergence,
                        "rounding": [[_named(s), lost] for s, lost in zip(place.storages, one.rounded, strict=True)],
                        "curves": [attrs.asdict(curve) for curve in one.curves],
                    }
                    for one in place.candidates
                ],
            }
            for (name, config), place, choice in zip(chosen.items(), places, choices, strict=True)
        }
        used = sum(choice.bytes for choice in choices)
        context.directory.write_json(
            "allocation.json",
            {
                "cache_budget": self.run_settings.cache_budget,
                "context": length,
                "budget_bytes_per_token": budget / length,
                "bytes_per_token": used / length,
                "predicted_divergence": sum(choice.loss for choice in choices),
                "layers": layers,
            },
        )
        loaded = context.shared.loaded
        document = loaded.resolved_group(context.group.name)
        assert context.shared.source is not None  # the mode needs a teacher
        lead_from(document["groups"][0], context.group, loaded.folder, None, context.shared.source.pinned)
        own = context.sites[0].student.config
        assert isinstance(own, Attention)
        set_attentions(document, context.run.id, chosen, own)
        context.directory.write_text("allocated.yml", dump(document))
        kinds = Counter(
            registry().name_of(type(config))
            + ("" if config.cache is None else f" in {registry().name_of(type(config.cache))}")
            for config in chosen.values()
        )
        context.reporter.line(
            f"{used / length:,.0f} bytes per token: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}"
        )
        context.reporter.line(f"the manifest of it: {context.directory.path / 'allocated.yml'}")


def measured(settings: Start) -> tuple[Start, int]:
    """How windows are drawn for measuring, and how many come before them: those of the calibration."""
    length = min(settings.max_context, settings.tokens)
    count = max(1, settings.tokens // length)
    windows = max(1, min(_MEASURED_TOKENS, count * length // 4) // length)
    return evolve(settings, tokens=windows * length), count


def _config(place: Place, choice: Choice) -> Attention:
    """The attention that a choice is."""
    config: Attention = evolve(place.candidates[choice.candidate].config, **choice.sizes)
    return config if choice.storage is None else evolve(config, cache=choice.storage)


def _held(node: Any, length: int) -> int:
    return int(node.applications * held_bytes(node.config, node.width_in, node.config.cache, length))


def _named(storage: Storage | None) -> Any:
    return None if storage is None else written(storage)
