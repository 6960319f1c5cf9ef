"""Starting one attention from another: the contract between calibration, moments and transplants.

A transplant is registered in ``caramba.transplant`` as ``SOURCE_to_TARGET`` (short names of the two attentions).  The
calibration runner probes the source attention on calibration tokens, feeds the moments that the transplant asked for,
and hands their results to :meth:`Transplant.start`, which returns every declared weight of the target.  No gradient
step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import attrs

from caramba_core.components import ITEM_BYTES, Attention, CacheEntry, Component, component
from caramba_core.errors import InputError, InvalidValue
from caramba_core.plugins.registry import registry
from caramba_core.sites import Site

if TYPE_CHECKING:
    from caramba_plugins_standard.probing import Probe
    from torch import Tensor, nn

__all__ = [
    "CacheBudget",
    "Calibrated",
    "Carrying",
    "Collector",
    "Example",
    "Moment",
    "SizeCurve",
    "Started",
    "Transplant",
    "find_transplant",
    "find_transplants",
    "missing_for_refit",
    "require_refittable",
]


@dataclass(frozen=True, slots=True)
class Example:
    """Calibration windows at one attention of both models, which run side by side.

    ``x`` ``[B, T, D]`` is what the target reads, behind everything that was converted before it; ``output``
    ``[B, T, D]`` what the source gave on its own inputs, at ``positions`` ``[T]``.
    """

    x: Tensor
    output: Tensor
    positions: Tensor
    probing: Callable[[], Probe]

    @property
    def probe(self) -> Probe:
        """What the source did on its own inputs; computed anew at every look, so that few are held at a time."""
        return self.probing()


class Collector(Protocol):
    """A streaming statistic of one attention: sums in float64, so that the order of batches hardly matters."""

    def update(self, probe: Probe) -> None:
        """Take one batch in."""
        ...

    def result(self) -> Mapping[str, Tensor]:
        """The statistic over everything seen; float64, on the CPU unless the collector says otherwise."""
        ...


@component
class Moment(Component):
    """Config of a collector; ``builds`` is a class ``(config, source: Attention, width: int) -> Collector``."""

    kind: ClassVar[str] = "moment"

    def operations(self, source: Attention, context: int) -> int:
        """Floating-point operations of the products over one window of ``context`` tokens, for plans."""
        return 0


@attrs.frozen(kw_only=True, eq=False)
class Calibrated:
    """An attention of the source as calibration saw it: its ``config``, and its ``weights`` in float32.

    ``width`` is that of what it reads, ``moments`` what was collected of it, by names as in :meth:`Transplant.moments`.
    """

    config: Attention
    weights: Mapping[str, Tensor]
    width: int
    moments: Mapping[str, Mapping[str, Tensor]] = attrs.field(factory=dict)

    def exact(self, name: str) -> Tensor:
        """A weight in float64 on the CPU; zeros for a bias (``q_bias`` of ``q_proj``) that there is not."""
        if name in self.weights:
            return self.weights[name].detach().cpu().double()
        projection = self.exact(name.replace("_bias", "_proj"))
        return projection.new_zeros(len(projection))


@attrs.frozen(kw_only=True)
class Started:
    """The start of one attention.

    ``weights`` holds every weight that the target declares; ``report`` numbers for the record (errors of each step).
    """

    weights: Mapping[str, Tensor]
    report: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class SizeCurve:
    """What one size of a target attention loses of the source's signal: for sharing a cache budget among layers.

    ``sizes`` are candidates of ``field``, ascending, and ``lost`` the share of the signal (0 to 1) that each leaves
    out.  ``alone`` is the target with every other size at its fullest, so that converting to it shows this loss by
    itself; a loss that only shows on top of another's names that one in ``after``.
    """

    field: str
    sizes: tuple[int, ...]
    lost: tuple[float, ...]
    alone: Attention
    after: str | None = None


@attrs.frozen(kw_only=True)
class CacheBudget:
    """What a proposed attention may cache.

    ``share`` is of the source's cache at ``context`` tokens, where a value takes two bytes unless its entry pins a
    type.  ``uniform``: the model's attentions are all alike, and so will those be that take their place.  ``given`` are
    fields that the user has chosen; they hold whatever is proposed for them.
    """

    share: float
    context: int
    uniform: bool = True
    given: Mapping[str, Any] = attrs.field(factory=dict)

    def values(self, source: Attention, width: int, *, entries: int = 1) -> int:
        """Cached values per token: the share of the source's, at least 1.

        Where the user chose a ``cache`` of few bits, as many values, at most the source's, as take the share's bytes
        stored that way, in so many ``entries`` of any sizes.
        """
        cached = sum(entry.values for entry in source.cache_spec(width).values() if entry.per_token)
        storage = self.given.get("cache")
        if storage is None or not storage.quantizes(CacheEntry(shape=(1,))):
            return max(1, int(self.share * cached))
        room = self.share * cached * ITEM_BYTES["bfloat16"] - (entries - 1) * storage.bytes(CacheEntry(shape=(1,)))
        fitting = (
            n for n in range(cached, 0, -1) if storage.bytes(CacheEntry(shape=(max(1, n - entries + 1),))) <= room
        )
        return next(fitting, 1)


@component
class Transplant(Component):
    """From one attention type to another.  Subclasses are light; they import torch inside their methods."""

    kind: ClassVar[str] = "transplant"
    builds: ClassVar[str] = ""
    target: ClassVar[type[Attention]] = Attention
    """The attention that it starts."""

    same: ClassVar[tuple[str, ...]] = ()
    """Fields that source and target must agree in."""

    without: ClassVar[tuple[str, ...]] = ()
    """Fields that a source must not have, or have as null."""

    def check(self, source: Attention, target: Attention, width: int) -> None:
        """Raise :class:`~caramba_core.errors.InvalidValue` with the reason where this pair cannot be converted.

        Here by ``same`` and ``without``; subclasses add what else they need.
        """
        for field in self.same:
            ours, theirs = _value(target, field), _value(source, field)
            if ours != theirs:
                raise InvalidValue(field, f"{ours} differs from the source's {theirs}", expected=str(theirs))
        for field in self.without:
            if getattr(source, field, None) is not None:
                raise InvalidValue(None, f"the source has {field}, for which {type(self).__name__} has no start")

    def propose(self, source: Attention, width: int, budget: CacheBudget) -> Mapping[str, Any] | None:
        """Fields of a target that fits a budget, for ``caramba init``; ``None`` where there is no such choice.

        Left out are those that the target takes over from the source (:attr:`~caramba_core.components.Layer.inherited`)
        and those that keep their defaults.  Raises :class:`~caramba_core.errors.InvalidValue` with the reason where no
        target fits.
        """
        return None

    def moments(self, source: Attention, target: Attention) -> Mapping[str, Moment]:
        """The statistics that :meth:`start` needs, by a name of the transplant's choosing."""
        return {}

    def survey(self, sites: Sequence[Site]) -> Mapping[str, Moment]:
        """The statistics of all of its sites that :meth:`surveyed` takes; none where each starts for itself.

        Raises :class:`~caramba_core.errors.InvalidValue` with the reason where the sites do not fit together.
        """
        return {}

    def surveyed(self, sites: Sequence[Site], moments: Sequence[Mapping[str, Mapping[str, Tensor]]]) -> Transplant:
        """The transplant that starts these sites, with what they have in common set from a survey of the source."""
        return self

    def start(self, source: Calibrated, target: Attention) -> Started:
        """The target's weights from those of the source and what calibration collected of it."""
        raise NotImplementedError(f"{type(self).__name__} does not define start")

    def has_constant(self, target: Attention) -> bool:
        """Whether what the start mixes holds a constant, so that a refit of the output needs no offset beside it."""
        return False

    def size_curves(self, source: Calibrated, target: Attention) -> Sequence[SizeCurve]:
        """One curve for each size of the target that may differ by layer; empty where none may."""
        return ()

    def refine(self, source: Calibrated, module: nn.Module, examples: Sequence[Example]) -> Mapping[str, Any]:
        """Improve the target's ``module``, which holds the start, on calibration tokens; numbers for the record.

        Comes before the output projection is refitted.  Each look at an example runs its probe anew, so that few are
        held at once.  No gradient step; a transplant that has nothing to do here does not define it.
        """
        return {}

    def refine_bytes(
        self, source: Attention, target: Attention, width: int, *, tokens: int, batch: int, context: int
    ) -> int:
        """Bytes that :meth:`refine` holds beside the models and the calibration ``tokens``, for plans.

        Those are windows of ``context``, and so many of them an example that there are ``batch`` in it.
        """
        return 0


def _value(config: Attention, field: str) -> Any:
    """A field; ``scale`` as it is computed where it is not given."""
    value = getattr(config, field, None)
    return getattr(config, "head_dim") ** -0.5 if value is None and field == "scale" else value  # noqa: B009


@component
class Carrying(Transplant):
    """Base of transplants to attentions that hold every weight of the source under its own name."""

    def check(self, source: Attention, target: Attention, width: int) -> None:
        """Each weight of the source must have its place."""
        super().check(source, target, width)
        for name in sorted(source.weights(width).keys() - target.weights(width).keys()):
            options = (option for option in (name, "qkv_bias") if hasattr(target, option))
            raise InvalidValue(next(options, None), f"the source's {name} has no place", expected="true")

    def start(self, source: Calibrated, target: Attention) -> Started:
        """The source's weights; what the target has besides starts at zero."""
        import torch

        own, declared = source.weights, target.weights(source.width).items()
        made = {name: own[name] if name in own else torch.zeros(weight.shape) for name, weight in declared}
        return Started(weights=made)


def find_transplant(site: Site, wanted: Transplant | None) -> Transplant:
    """The transplant for a site: the one wanted, where it starts that attention, or that of its two types.

    Raises :class:`InputError` with the reason where there is none, or where it refuses this pair.
    """
    plugins = registry()
    assert isinstance(site.teacher.config, Attention)
    assert isinstance(site.student.config, Attention)
    transplant = wanted if wanted is not None and isinstance(site.student.config, wanted.target) else None
    if transplant is None:
        source, target = (plugins.name_of(type(node.config)) for node in (site.teacher, site.student))
        transplant = plugins.load(plugins.find(["transplant"], f"{source}_to_{target}"))()
    assert isinstance(transplant, Transplant)
    try:
        transplant.check(site.teacher.config, site.student.config, site.student.width_in)
    except InvalidValue as error:
        raise InputError(f"{site.name}: {error}", expected=error.expected, hint=error.hint) from error
    return transplant


def find_transplants(sites: Sequence[Site], wanted: Transplant | None) -> list[tuple[Transplant, list[Site]]]:
    """Every transplant with its sites; :class:`InputError` as of :func:`find_transplant`, or where sites do not fit.

    A transplant that is wanted must be one of them.
    """
    found: list[tuple[Transplant, list[Site]]] = []
    if wanted is not None and not any(isinstance(site.student.config, wanted.target) for site in sites):
        made, given = wanted.target.__name__, type(sites[0].student.config).__name__
        raise InputError(f"{sites[0].name}: {type(wanted).__name__} starts {made}, and this is {given}")
    for site in sites:
        transplant = find_transplant(site, wanted)
        own = next((others for other, others in found if other == transplant), None)
        if own is None:
            found.append((transplant, own := []))
        own.append(site)
    for transplant, own in found:
        try:
            transplant.survey(own)
        except InvalidValue as error:
            raise InputError(str(error), expected=error.expected, hint=error.hint) from error
    return found


def missing_for_refit(transplant: Transplant, target: Attention, width: int) -> list[str]:
    """The weights that an attention would need, and lacks, for its output to be refitted after a start."""
    projection, offset = target.output_weights or ("", "")
    needed = (projection,) if transplant.has_constant(target) else (projection, offset)
    declared = target.weights(width)
    return [name for name in needed if name and name not in declared]


def require_refittable(site: Site, missing: Sequence[str]) -> None:
    """Raise :class:`InputError` for an attention whose output cannot be refitted, as it has not what is ``missing``."""
    if missing:
        raise InputError(
            f"{site.name} cannot be refitted: it has no {', '.join(missing)}",
            hint="give the attention an output bias, or set start.refit: false",
        )
