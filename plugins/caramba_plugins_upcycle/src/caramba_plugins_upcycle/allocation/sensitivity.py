"""What each way to cache a layer costs: the divergence from the teacher with that loss alone.

A share of a signal that is lost says little by itself: the same share matters in one layer and not in another.  So each
site is converted to every attention in question, all else being the teacher's, and the divergence of the next-token
distributions is measured behind the whole model: on windows of text, and on windows that say their first half again, in
which the next token has to be retrieved.  Along a curve of sizes the divergence is taken as proportional to the lost
share.  What rounding a cache adds is the divergence of the same attention with that cache from itself without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from caramba_core.components import Attention, Storage
from caramba_core.errors import InputError
from caramba_core.graph import ROOT
from caramba_core.nn.build import load_object
from caramba_core.nn.cache import Cache, LayerCache
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel
from caramba_core.sites import Site
from caramba_plugins_upcycle.calibration import collectors_of, fill
from caramba_plugins_upcycle.clock import Clock
from caramba_plugins_upcycle.modes import Start
from caramba_plugins_upcycle.refit import refit_output
from caramba_plugins_upcycle.stages import Stage, input_of, stages
from caramba_plugins_upcycle.strategy_runners import divergence
from caramba_plugins_upcycle.transplant import Calibrated, find_transplant

__all__ = ["Measured", "Sensitivity", "measure_sensitivities", "with_student"]

_LOGIT_ROWS = 512
_KEPT_BYTES = 1 << 30
"""Of logits that candidates are compared with, beyond which they are computed for each candidate anew."""

_SMALLEST_SHARE = 0.02
"""Of the largest loss at a site: a measured difference below this is noise, and must not make a size worthless."""


@attrs.frozen(kw_only=True)
class Sensitivity:
    """One size of one attention: ``losses`` in nats of divergence at each of ``sizes``; ``own`` is the manifest's."""

    field: str
    own: int
    sizes: tuple[int, ...]
    losses: tuple[float, ...]


@attrs.frozen(kw_only=True)
class Measured:
    """One attention in one place: what it loses, in nats.

    ``divergence`` is that of its own sizes, ``curves`` say what other sizes lose; ``rounded`` adds what each storage
    loses, in the order in which storages are given.
    """

    config: Attention
    divergence: float = 0.0
    curves: tuple[Sensitivity, ...] = ()
    rounded: tuple[float, ...]


@torch.no_grad()
def measure_sensitivities(
    *,
    teacher: LanguageModel,
    sites: tuple[Site, ...],
    candidates: Mapping[str, Sequence[Attention]],
    storages: Sequence[Storage | None],
    settings: Start,
    calibration: list[Tensor],
    measured: list[Tensor],
    progress: Callable[[int], None] = lambda tokens: None,
) -> dict[str, list[Measured]]:
    """Every candidate of each site, by the site's name, given calibration and measuring windows int64 ``[B, T]``.

    A candidate that is the teacher's own attention loses what rounding its cache does.  Raises :class:`InputError`
    where there is nothing to choose from: one attention, whose transplant has no curves of sizes, in one storage.
    """
    walked = list(stages(teacher))
    states = [(Frame.of(tokens), teacher.embedder(tokens)) for tokens in calibration]
    texts = [(tokens, 0) for tokens in measured]
    texts += [(_said_again(tokens), tokens.shape[1] // 2) for tokens in measured]
    looked = [(Frame.of(tokens), teacher.embedder(tokens), first) for tokens, first in texts]
    final = _Compared(teacher, [teacher.hidden(tokens) for tokens, _ in texts])
    found: dict[str, list[Measured]] = {}
    for index, stage in enumerate(walked):
        for site in sites:
            if stage.holds(site.name):
                probing = _Site(teacher, site, candidates[site.name], settings, walked[index:], states, looked, final)
                found[site.name] = [probing.measured(place, storages) for place in range(len(candidates[site.name]))]
                _require_choice(site, found[site.name], storages)
        states = [(frame, stage.run(x, frame)) for frame, x in states]
        looked = [(frame, stage.run(x, frame), first) for frame, x, first in looked]
        progress(sum(tokens.numel() for tokens in calibration))
    return found


def _require_choice(site: Site, measured: Sequence[Measured], storages: Sequence[Storage | None]) -> None:
    if len(measured) * len(storages) == 1 and not measured[0].curves:
        raise InputError(
            f"{site.name}: the transplant to {type(measured[0].config).__name__} does not say what its sizes lose",
            hint="give sizes in the manifest, or let mode allocate choose among caches or other attentions, too",
        )


def with_student(site: Site, config: Attention) -> Site:
    """The same place of the model with another attention of the student's."""
    return attrs.evolve(site, student=attrs.evolve(site.student, config=config))


def _said_again(tokens: Tensor) -> Tensor:
    """Windows ``[B, T]`` whose second half is their first."""
    half = tokens.shape[1] // 2
    return torch.cat([tokens[:, :half], tokens[:, :half], tokens[:, 2 * half :]], dim=1)


class _Compared:
    """What the head reads of each batch, ``[B, T, D]``, and its logits, which are kept as far as there is room."""

    def __init__(self, model: LanguageModel, hidden: list[Tensor]) -> None:
        self.model, self.hidden = model, hidden
        self._kept: dict[tuple[int, int], Tensor] = {}
        self._room = _KEPT_BYTES

    def logits(self, batch: int, first: int, at: int) -> Tensor:
        """Those of up to ``_LOGIT_ROWS`` tokens from number ``at`` on of a batch, without each text's ``first``."""
        kept = self._kept.get((batch, at))
        if kept is None:
            kept = self.model.logits(self.hidden[batch][:, first:].flatten(0, 1)[at : at + _LOGIT_ROWS])
            if kept.nbytes <= self._room:
                self._kept[batch, at] = kept
                self._room -= kept.nbytes
        return kept


class _Site:
    """One attention of the teacher, with the hidden states in front of its stage."""

    def __init__(
        self,
        model: LanguageModel,
        site: Site,
        candidates: Sequence[Attention],
        settings: Start,
        onward: list[Stage],
        states: list[tuple[Frame, Tensor]],
        looked: list[tuple[Frame, Tensor, int]],
        final: _Compared,
    ) -> None:
        self.model, self.site, self.settings, self.onward = model, site, settings, onward
        self.looked, self.final = looked, final
        assert isinstance(site.teacher.config, Attention)
        self.source = site.teacher.config
        self.path = site.name.removeprefix(f"{ROOT}.")
        self.width = site.student.width_in
        self.candidates = candidates
        self.transplants = {
            place: find_transplant(with_student(site, config), settings.transplant)
            for place, config in enumerate(candidates)
            if config != self.source
        }
        collectors = {
            place: collectors_of(transplant, self.source, candidates[place], self.width)
            for place, transplant in self.transplants.items()
        }
        module: Any = model.get_submodule(self.path)
        self.inputs: list[tuple[Frame, Tensor, Tensor]] = []
        for frame, x in states if collectors else ():
            read = input_of(module, onward[0], x, frame)
            probe = module.probe(read, frame)
            self.inputs.append((frame, read, probe.output))
            for own in collectors.values():
                for collector in own.values():
                    collector.update(probe)
        weights = {name: tensor.detach().float() for name, tensor in module.state_dict().items()}
        whole = Calibrated(config=self.source, weights=weights, width=self.width)
        self.seen = {
            place: attrs.evolve(whole, moments={name: collector.result() for name, collector in own.items()})
            for place, own in collectors.items()
        }

    def measured(self, place: int, storages: Sequence[Storage | None]) -> Measured:
        """One candidate: its own divergence, its curves, and what rounding its cache adds."""
        config = self.candidates[place]
        if place not in self.transplants:
            return Measured(config=config, rounded=self._rounded(None, config, storages, self.final))
        module = self._converted(place, config)
        outputs = self._outputs(module)
        own = self._divergence(outputs, self.final)
        return Measured(
            config=config,
            divergence=own,
            curves=tuple(self._sensitivities(place, config, own)),
            rounded=self._rounded(module, config, storages, _Compared(self.model, outputs)),
        )

    def _sensitivities(self, place: int, config: Attention, divergence: float) -> Iterator[Sensitivity]:
        """Each curve of an attention, in nats."""
        curves = self.transplants[place].size_curves(self.seen[place], config)
        measured = {
            curve.field: divergence
            if curve.alone == config
            else self._divergence(self._outputs(self._converted(place, curve.alone)), self.final)
            for curve in curves
        }
        floor = _SMALLEST_SHARE * max(measured.values(), default=0.0)
        for curve in curves:
            alone = measured[curve.field] - (measured[curve.after] if curve.after is not None else 0.0)
            own: int = getattr(config, curve.field)
            slope = max(alone, floor) / max(curve.lost[curve.sizes.index(own)], torch.finfo(torch.float32).eps)
            losses = tuple(slope * lost for lost in curve.lost)
            yield Sensitivity(field=curve.field, own=own, sizes=curve.sizes, losses=losses)

    def _converted(self, place: int, config: Attention) -> Any:
        """The site converted to ``config``, of the kind of a candidate, its output refitted."""
        started = self.transplants[place].start(self.seen[place], config)
        module: Any = load_object(config.builds)(config, self.width).to(self.seen[place].weights["o_proj"].device)
        module.site = self.site.name
        fill(self.site.name, module, started.weights)
        if self.settings.refit:
            pairs = ((module.mix(x, frame), output) for frame, x, output in self.inputs)
            refit_output(config, module, pairs, self.settings.ridge, clock=Clock(module.o_proj.device))
        return module

    def _rounded(
        self, module: nn.Module | None, config: Attention, storages: Sequence[Storage | None], whole: _Compared
    ) -> tuple[float, ...]:
        """What each storage adds to an attention that gives ``whole`` without."""
        lossy = [
            one is not None and any(map(one.quantizes, config.cache_spec(self.width).values())) for one in storages
        ]
        return tuple(
            self._divergence(self._outputs(module, config, storage), whole) if rounds else 0.0
            for storage, rounds in zip(storages, lossy, strict=True)
        )

    def _outputs(
        self, module: nn.Module | None, config: Attention | None = None, storage: Storage | None = None
    ) -> list[Tensor]:
        """What the head reads with ``module`` in place, or the teacher's own: ``[B, T, D]`` of each batch.

        With ``storage`` the keys and values of ``config`` are read back as they are stored.
        """
        found = []
        with _in_place(self.model, self.path, module):
            for frame, x, _ in self.looked:
                first = frame
                if config is not None:
                    first = replace(frame, cache=_OneStored(self.model, self.site, config, x, storage))
                for stage in self.onward:
                    x = stage.run(x, first)
                    first = frame
                found.append(x)
        return found

    def _divergence(self, ours: list[Tensor], wanted: _Compared) -> float:
        """Mean KL in nats of what the head makes of ``ours`` from what it makes of ``wanted``."""
        total = count = 0.0
        for batch, (own, (_, _, first)) in enumerate(zip(ours, self.looked, strict=True)):
            rows = own[:, first:].flatten(0, 1)
            for at in range(0, len(rows), _LOGIT_ROWS):
                kl = divergence(self.model.logits(rows[at : at + _LOGIT_ROWS]), wanted.logits(batch, first, at), 1.0)
                total, count = total + float(kl.sum()), count + len(kl)
        return total / count


class _OneStored(Cache):
    """Caches of a pass over hidden states ``[B, T, D]`` in which one attention's is stored otherwise."""

    def __init__(self, model: LanguageModel, site: Site, config: Attention, x: Tensor, storage: Storage | None) -> None:
        super().__init__(model.graph, batch=len(x), dtype=x.dtype, device=x.device)
        spec = config.cache_spec(site.student.width_in)
        for application in range(site.student.applications):
            self._layers[site.name, application] = LayerCache(spec, len(x), x.dtype, x.device, storage)


@contextmanager
def _in_place(model: nn.Module, path: str, module: nn.Module | None) -> Iterator[None]:
    """``module``, if any, under a name of the model, and the model's own put back."""
    parent, _, name = path.rpartition(".")
    holder = model.get_submodule(parent)
    own = holder.get_submodule(name)
    setattr(holder, name, own if module is None else module.eval())
    try:
        yield
    finally:
        setattr(holder, name, own)
