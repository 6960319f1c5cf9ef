"""What each size of each attention costs: the divergence from the teacher with that loss alone.

A share of a signal that is lost says little by itself: the same share matters in one layer and not in another.  So each
site is converted once a size, all else being the teacher's, and the divergence of the next-token distributions is
measured behind the whole model.  Along a curve of sizes the divergence is taken as proportional to the lost share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from caramba_core.components import Attention
from caramba_core.errors import InputError
from caramba_core.graph import ROOT
from caramba_core.nn.build import load_object
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel
from caramba_core.sites import Site
from caramba_plugins_upcycle.calibration import collectors_of, fill
from caramba_plugins_upcycle.modes import Start
from caramba_plugins_upcycle.refit import refit_output
from caramba_plugins_upcycle.stages import Stage, input_of, stages
from caramba_plugins_upcycle.strategy_runners import divergence
from caramba_plugins_upcycle.transplant import find_transplant

__all__ = ["Sensitivity", "measure_sensitivities"]

_LOGIT_ROWS = 512
_SMALLEST_SHARE = 0.02
"""Of the largest loss at a site: a measured difference below this is noise, and must not make a size worthless."""


@attrs.frozen(kw_only=True)
class Sensitivity:
    """One size of one site: ``losses`` in nats of divergence at each of ``sizes``; ``own`` is the manifest's."""

    site: str
    field: str
    own: int
    sizes: tuple[int, ...]
    losses: tuple[float, ...]


@torch.no_grad()
def measure_sensitivities(
    *,
    teacher: LanguageModel,
    sites: tuple[Site, ...],
    settings: Start,
    calibration: list[Tensor],
    measured: list[Tensor],
    progress: Callable[[int], None] = lambda tokens: None,
) -> tuple[Sensitivity, ...]:
    """One entry a site and size, given calibration and measuring windows int64 ``[B, T]``.

    Raises :class:`InputError` where a site's transplant has no curves.
    """
    walked = list(stages(teacher))
    states = [(Frame.of(tokens), teacher.embedder(tokens)) for tokens in calibration]
    looked = [(Frame.of(tokens), teacher.embedder(tokens)) for tokens in measured]
    final = [teacher.hidden(tokens) for tokens in measured]
    found: list[Sensitivity] = []
    for index, stage in enumerate(walked):
        for site in sites:
            if stage.holds(site.name):
                probing = _Site(teacher, site, settings, walked[index:], states, looked, final)
                found.extend(probing.sensitivities())
        states = [(frame, stage.run(x, frame)) for frame, x in states]
        looked = [(frame, stage.run(x, frame)) for frame, x in looked]
        progress(sum(tokens.numel() for tokens in calibration))
    return tuple(found)


class _Site:
    """One attention of the teacher, with the hidden states in front of its stage."""

    def __init__(
        self,
        model: LanguageModel,
        site: Site,
        settings: Start,
        onward: list[Stage],
        states: list[tuple[Frame, Tensor]],
        looked: list[tuple[Frame, Tensor]],
        final: list[Tensor],
    ) -> None:
        self.model, self.site, self.settings, self.onward = model, site, settings, onward
        self.looked, self.final = looked, final
        assert isinstance(site.teacher.config, Attention)
        assert isinstance(site.student.config, Attention)
        self.source, self.target = site.teacher.config, site.student.config
        self.path = site.name.removeprefix(f"{ROOT}.")
        self.transplant = find_transplant(site, settings.transplant)
        module: Any = model.get_submodule(self.path)
        collectors = collectors_of(self.transplant, self.source, self.target, site.student.width_in)
        self.inputs: list[tuple[Frame, Tensor, Tensor]] = []
        for frame, x in states:
            read = input_of(module, onward[0], x, frame)
            probe = module.probe(read, frame)
            self.inputs.append((frame, read, probe.output))
            for collector in collectors.values():
                collector.update(probe)
        self.weights: Mapping[str, Tensor] = {k: v.detach().float() for k, v in module.state_dict().items()}
        self.moments = {name: collector.result() for name, collector in collectors.items()}

    def sensitivities(self) -> Iterator[Sensitivity]:
        """Each curve of the site, in nats."""
        curves = self.transplant.size_curves(self.source, self.weights, self.target, self.moments)
        if not curves:
            raise InputError(
                f"{self.site.name}: {type(self.transplant).__name__} does not say what its sizes lose",
                hint="give the sizes in the manifest; a budget cannot be divided here",
            )
        measured = {curve.field: self._divergence(curve.alone) for curve in curves}
        floor = _SMALLEST_SHARE * max(measured.values())
        for curve in curves:
            alone = measured[curve.field] - (measured[curve.after] if curve.after is not None else 0.0)
            own: int = getattr(self.target, curve.field)
            slope = max(alone, floor) / max(curve.lost[curve.sizes.index(own)], torch.finfo(torch.float32).eps)
            losses = tuple(slope * lost for lost in curve.lost)
            yield Sensitivity(site=self.site.name, field=curve.field, own=own, sizes=curve.sizes, losses=losses)

    def _divergence(self, config: Attention) -> float:
        """Mean KL in nats behind the model with this site converted to ``config``, its output refitted."""
        width = self.site.student.width_in
        like = self.weights["o_proj"]
        started = self.transplant.start(self.source, self.weights, config, width, self.moments)
        module: Any = load_object(config.builds)(config, width).to(like.device)
        fill(self.site.name, module, started.weights)
        if self.settings.refit:
            pairs = ((module.mix(x, frame), output) for frame, x, output in self.inputs)
            refit_output(config, module, pairs, self.settings.ridge)
        total = count = 0.0
        with _in_place(self.model, self.path, module):
            for (frame, x), theirs in zip(self.looked, self.final, strict=True):
                for stage in self.onward:
                    x = stage.run(x, frame)
                ours, wanted = x.flatten(0, 1), theirs.flatten(0, 1)
                for at in range(0, len(ours), _LOGIT_ROWS):
                    part = slice(at, at + _LOGIT_ROWS)
                    kl = divergence(self.model.logits(ours[part]), self.model.logits(wanted[part]), 1.0)
                    total, count = total + float(kl.sum()), count + len(kl)
        return total / count


@contextmanager
def _in_place(model: nn.Module, path: str, module: nn.Module) -> Iterator[None]:
    """``module`` under a name of the model, and the model's own put back."""
    parent, _, name = path.rpartition(".")
    holder = model.get_submodule(parent)
    own = holder.get_submodule(name)
    setattr(holder, name, module.eval())
    try:
        yield
    finally:
        setattr(holder, name, own)
