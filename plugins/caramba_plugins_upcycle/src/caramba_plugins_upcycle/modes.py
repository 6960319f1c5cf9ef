"""The modes ``convert`` and ``allocate`` (configs; light)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import attrs
from caramba_plugins_standard.modes import blamed_on

from caramba_core.components import Attention, Layer, Storage, component, option
from caramba_core.errors import InputError, PluginError
from caramba_core.graph import Graph
from caramba_core.modes import Evaluation, Need, Run, Workload
from caramba_core.sites import Site, find_sites
from caramba_plugins_upcycle.transplant import Transplant, find_transplants, missing_for_refit, require_refittable

if TYPE_CHECKING:
    from caramba_core.datasets import Tokens
    from caramba_core.plan import ModelPlan, RunPlan
    from caramba_core.teachers import Tokenizer

__all__ = ["Allocate", "Convert", "Start"]


@component
class Start:
    """How the student's attentions start."""

    transplant: Transplant | None = option(
        default=None, help="how one attention starts from the other; found by their types if not given"
    )
    tokens: int = option(default=32768, help="calibration tokens", unit="tokens", minimum=1)
    max_context: int = option(
        default=1024,
        help="tokens per calibration window: attention is measured up to this distance, so take what will be served",
        unit="tokens",
        minimum=2,
    )
    batch_size: int = option(default=4, help="windows per calibration pass", minimum=1)
    inputs: Literal["teacher", "student"] = option(
        default="teacher", help="whose hidden states the moments are taken on"
    )
    refine: bool = option(
        default=False, help="let the transplant improve its start by least squares on the calibration tokens"
    )
    refit: bool = option(default=True, help="refit the output projections by least squares, layer by layer")
    refit_mlp: bool = option(
        default=False, help="refit the output projections of the layers between converted attentions too"
    )
    compensate: float = option(
        default=0.5,
        help="share of the error that the hidden states bring along which each refit is to make good",
        minimum=0.0,
        maximum=1.0,
    )
    ridge: float = option(
        default=1e-3, help="ridge of the attentions' refit, relative to the mean of the Gram diagonal", minimum=0.0
    )
    mlp_ridge: float = option(
        default=0.1, help="ridge of the refit of the layers between, relative to the same", minimum=0.0
    )


@component
class _Upcycle(Run):
    """A run on calibration tokens of the teacher's attentions."""

    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "data.train"})

    start: Start = option(factory=Start, help="how the attentions start")

    def workload(self, evaluation: Evaluation, vocab_size: int) -> Workload:
        """Passes over calibration windows."""
        return Workload(batch_size=self.start.batch_size, context=self.start.max_context, dtype=self.dtype)

    def check_before(self, device: str, sites: Sequence[Site]) -> None:
        """There must be something to do."""
        if not sites:
            raise InputError(
                f"run {self.id} (mode {self.mode}) has nothing to do: the manifest's attentions are the teacher's own",
                hint="change the attention in model.topology, or drop this run",
            )

    def check_model(self, graph: Graph, sites: Sequence[Site]) -> None:
        """There must be a transplant for each attention that takes the pair."""
        if sites:
            self._check_starts(sites, self.start.transplant)

    def _check_starts(self, sites: Sequence[Site], wanted: Transplant | None) -> None:
        with blamed_on(None):
            for transplant, own in find_transplants(sites, wanted):
                for site in own if self.start.refit else ():
                    config = site.student.config
                    assert isinstance(config, Attention)
                    require_refittable(site, missing_for_refit(transplant, config, site.student.width_in))

    def check_inputs(self, tokens: Tokens | None, tokenizer: Tokenizer | None) -> None:
        """There must be windows enough to calibrate on."""
        from caramba_plugins_upcycle.convert import calibration_windows

        assert tokens is not None  # the mode needs them
        with blamed_on("start", "tokens"):
            calibration_windows(tokens, self.start, self.seed)


@component
class Convert(_Upcycle):
    """Start the student's attentions from the teacher's, without a gradient step."""

    builds: ClassVar[str] = "caramba_plugins_upcycle.convert:ConvertRunner"
    changes_weights: ClassVar[bool] = True
    starts_from_teacher: ClassVar[bool] = True

    def planned(self, plan: RunPlan, model: ModelPlan, teacher: ModelPlan | None, own: frozenset[str]) -> RunPlan:
        """With the calibration windows in both models."""
        from caramba_plugins_upcycle.planning import with_calibration

        try:
            sites = () if teacher is None else find_sites(teacher.graph, model.graph)
            return with_calibration(plan, self.start, model, teacher, sites)
        except (InputError, PluginError):  # two models that do not go together, which a run says
            return plan

    def changes(self, graph: Graph, converted: frozenset[str]) -> frozenset[str]:
        """With ``refit_mlp``, the output weights of the layers behind the first attention that converts."""
        changed: set[str] = set()
        behind = False
        for node in graph.walk() if self.start.refit_mlp else ():
            config = node.config
            behind = behind or node.name in converted
            if behind and isinstance(config, Layer) and not isinstance(config, Attention) and config.output_weights:
                own = config.weights(node.width_in)
                changed.update(f"{node.name}.{weight}" for weight in config.output_weights if weight in own)
        return frozenset(changed)


@component
class Allocate(_Upcycle):
    """Divide a budget of cached bytes among the layers, and write the manifest that says so.

    Each layer gets one of several attentions, the sizes of it, and a storage of its cache.
    """

    builds: ClassVar[str] = "caramba_plugins_upcycle.allocation.mode:AllocateRunner"
    measures: ClassVar[bool] = False

    cache_budget: str = option(
        help="cached bytes per token at a context of start.max_context: a share of the teacher's, or their number; "
        "what is stored as it was computed counts two bytes a value",
        pattern=r"(0?\.\d+|1(\.0+)?)x|[1-9]\d* ?B",
        form="a share of the teacher's, such as 0.5x, or bytes, such as 11520 B",
    )
    caches: tuple[Storage, ...] = option(
        default=(), help="how a layer's cache may be stored; as the attention says if not given"
    )
    keep: bool = option(default=False, help="let layers keep the teacher's attention")
    choices: tuple[Attention, ...] = option(
        default=(), help="attentions that layers may have instead of the manifest's, written in full"
    )
    allocation_step: float = option(
        default=0.5,
        help="how far sizes by layer go from equal shares (0) to the optimum that is predicted (1); predictions hold "
        "best near equal shares",
        minimum=0.0,
        maximum=1.0,
    )

    def candidates(self, site: Site) -> list[Attention]:
        """The attentions that one layer may have: the manifest's, others, the teacher's."""
        own, teacher = site.student.config, site.teacher.config
        assert isinstance(own, Attention)
        assert isinstance(teacher, Attention)
        return [own, *self.choices, *([teacher] if self.keep else [])]

    def check_model(self, graph: Graph, sites: Sequence[Site]) -> None:
        """Every candidate must be one that a transplant starts."""
        super().check_model(graph, sites)
        for choice in self.choices if sites else ():
            others = [attrs.evolve(site, student=attrs.evolve(site.student, config=choice)) for site in sites]
            wanted = self.start.transplant
            self._check_starts(others, wanted if wanted and isinstance(choice, wanted.target) else None)

    def check_inputs(self, tokens: Tokens | None, tokenizer: Tokenizer | None) -> None:
        """There must be windows to calibrate on, and others to measure on."""
        from caramba_plugins_upcycle.allocation.mode import measured
        from caramba_plugins_upcycle.convert import calibration_windows

        super().check_inputs(tokens, tokenizer)
        assert tokens is not None  # the mode needs them
        settings, skip = measured(self.start)
        with blamed_on("start", "tokens"):
            calibration_windows(tokens, settings, self.seed, skip=skip)
