"""Modes: the base of every run's config, and what a mode says of itself.

The key ``mode:`` of a run names a config derived from :class:`Run` that is registered in ``caramba.mode``; its fields
are the keys that the mode adds to a run::

    @component
    class Prune(Run):
        \"\"\"Set the smallest weights to zero.\"\"\"

        builds: ClassVar[str] = "my_package.runner:PruneRunner"
        needs: ClassVar[frozenset[Need]] = frozenset({"teacher"})
        changes_weights: ClassVar[bool] = True

        share: float = option(help="share of the weights that become zero", above=0.0, below=1.0)

``PruneRunner(run, context).run()`` does the work, with what :class:`~caramba_core.run.context.RunContext` gives, and
returns :class:`Results`.  Reading, planning and checking a manifest import no torch: a config's module must not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Protocol

import attrs

from caramba_core.components import Component, Storage, component, option
from caramba_core.datasets import Dataset
from caramba_core.errors import VerificationFailed

if TYPE_CHECKING:
    from caramba_core.datasets import Tokens
    from caramba_core.graph import Graph
    from caramba_core.sites import Site
    from caramba_core.teachers import Tokenizer

__all__ = [
    "DType",
    "Data",
    "Device",
    "Evaluation",
    "Evaluator",
    "ModeRunner",
    "Need",
    "Results",
    "Run",
    "Teacher",
    "Verify",
    "Workload",
]

Device = Literal["auto", "cpu", "cuda", "mps"]
DType = Literal["float32", "bfloat16", "float16", "float64"]

NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"
NAME_FORM: Final = "a folder name: letters, digits, . _ - (no . or - in front), at most 100"


@component
class Teacher:
    """The pretrained model that a group starts from and learns from."""

    source: str = option(help="a file or folder relative to the manifest, or an address (SCHEME://...)")
    sha256: str | None = option(
        default=None,
        help="SHA-256 that the file must have",
        pattern="[0-9a-f]{64}",
        form="64 hexadecimal digits in lower case",
    )
    dtype: DType = option(default="float32", help="the type its weights are held in")


@component
class Data:
    """Tokens to train on and tokens to measure on."""

    train: Dataset | None = option(default=None, help="calibration and training tokens")
    heldout: Dataset | None = option(default=None, help="tokens that are only ever measured on")


@component
class Evaluation:
    """How held-out perplexity is measured: ``windows`` windows of ``context`` tokens from the start of the tokens."""

    context: int = option(default=1024, help="tokens per window", unit="tokens", minimum=2)
    windows: int = option(default=32, help="windows measured", minimum=1)
    batch_size: int = option(default=1, help="windows per pass", minimum=1)
    cache: Storage | None = option(
        default=None,
        help="how keys and values are stored, instead of what each attention's cache says: the student is measured, "
        "and generates, reading all of them back from such a cache",
    )


@component
class Verify:
    """Thresholds that a run must meet; a miss ends with exit code 3 and keeps the artifacts."""

    perplexity_ratio_at_most: float | None = option(default=None, help="end perplexity / teacher's", above=0.0)

    def judged(self, summary: Mapping[str, Any]) -> Iterator[tuple[str, float | None, bool]]:
        """Each threshold in words, what a ``summary.json`` has for it, and whether that meets it."""
        if (most := self.perplexity_ratio_at_most) is not None:
            found = summary.get("perplexity_ratio", {}).get("end")
            yield f"perplexity_ratio at most {most:g}", found, found is not None and found <= most

    def require(self, whose: str, summary: Mapping[str, Any]) -> None:
        """Raise :class:`~caramba_core.errors.VerificationFailed` where a summary, named ``whose``, misses any."""
        missed = [f"{asked} (found {found})" for asked, found, met in self.judged(summary) if not met]
        if missed:
            raise VerificationFailed(f"{whose} misses {'; '.join(missed)}", hint="the artifacts are kept")


# ------------------------------------------------------------------------------------------------ what a mode says

Need = Literal["teacher", "tokenizer", "data.train", "data.heldout", "weights"]


@attrs.frozen(kw_only=True)
class Workload:
    """What a run computes, for its plan: passes over batches of ``batch_size`` sequences of ``context`` tokens.

    ``sequences`` is how many sequences the whole run trains on, forward and backward; ``uses_teacher`` adds a pass of
    the teacher over each.  ``whole_model`` is false where backward runs through one node at a time.  An optimizer keeps
    ``state_values`` values for each parameter that trains, of its type, and ``state_scalars`` float32 numbers for each
    tensor; ``logit_values`` float32 values of logits and the token ids of ``batches`` batches are held at once.
    ``caches`` counts a cache of ``context`` tokens for each sequence.
    """

    batch_size: int
    context: int
    dtype: str
    sequences: int = 0
    batches: int = 1
    uses_teacher: bool = False
    whole_model: bool = True
    state_values: int = 0
    state_scalars: int = 0
    logit_values: int = 0
    caches: bool = False


@attrs.frozen(kw_only=True)
class Results:
    """What a run gave: ``entries`` go into ``summary.json``; ``done`` is false for one that stopped to be resumed."""

    done: bool = True
    entries: dict[str, Any] = attrs.field(factory=dict)


class ModeRunner(Protocol):
    """What a mode's ``builds`` makes, as ``cls(run, context)``."""

    def run(self) -> Results:
        """Do the work; artifacts go to ``context.directory``."""
        ...


class Evaluator(Protocol):
    """What is measured before and after the work of a run: perplexities, say.  Made as ``cls(context)``.

    Every installed one is asked, for runs whose mode :attr:`~Run.measures`; it keeps what it measures in the run's
    folder, so that a run that goes on does not measure again, and raises
    :class:`~caramba_terminal.limit.Paused` (``context.pause_if_due``) where the call is to end before it is through.
    """

    def __init__(self, context: Any) -> None: ...  # a caramba_core.run.context.RunContext

    @classmethod
    def check(cls, tokens: Tokens, settings: Evaluation) -> None:
        """Raise :class:`~caramba_core.errors.InvalidValue` where the held-out tokens do not do for these settings."""

    def before(self) -> Iterator[tuple[str, float]]:
        """Measure where the run starts from; gives the name and value of each figure that was not known yet."""

    def after(self) -> Iterator[tuple[str, float]]:
        """The same of the run's end, which is its start where its mode changes no weights."""

    def entries(self) -> dict[str, Any]:
        """What ``summary.json`` says of all of it."""


@component
class Run(Component):
    """One stage of a group; ``builds`` is a class ``(run, context: RunContext) -> ModeRunner``."""

    kind: ClassVar[str] = "mode"
    tag: ClassVar[str] = "mode"
    needs: ClassVar[frozenset[Need]] = frozenset()
    """What its group must have, and ``weights``: those of a run before it, or all of them the teacher's."""
    measures: ClassVar[bool] = True
    """Whether teacher, start and end are measured, where the group has held-out tokens."""
    changes_weights: ClassVar[bool] = False
    """Whether the student has other weights at the end: the run saves a checkpoint, and its end is measured."""
    starts_from_teacher: ClassVar[bool] = False
    """Whether the teacher is what the run's start is measured on: the mode makes the student's weights from its."""
    resumes: ClassVar[bool] = False
    """Whether a run that stopped goes on from its last checkpoint (``context.resume_from``); others start over."""
    heeds_evaluation: ClassVar[bool] = False
    """Whether ``eval:`` shapes the run's work, not only how it is measured."""
    without_effect: ClassVar[frozenset[str]] = frozenset({"device", "verify"})
    """Keys, dotted where they are nested, that do not shape the result: a run may be resumed with other values."""
    may_change: ClassVar[frozenset[str]] = frozenset()
    """Keys, dotted where they are nested, that may change when a run goes on: they shape what is left of it."""
    trains_key: ClassVar[tuple[str, ...]] = ("trains",)
    """Where the patterns of :attr:`trains` stand in the run."""

    id: str = option(help="name of the run, and of its folder", pattern=NAME, form=NAME_FORM)
    mode: str = option(help="what the run does: the name of a mode")
    seed: int = option(default=0, help="seed of everything random", minimum=0)
    from_: str | None = option(
        default=None, help="run whose result this one continues; the previous one of the group if not given (key: from)"
    )
    eval: Evaluation | None = option(default=None, help="how it is measured; the group's if not given")
    verify: Verify | None = option(default=None, help="what must hold at the end")
    device: Device = option(default="auto", help="auto takes CUDA, then MPS, then the CPU")
    dtype: DType = option(default="float32", help="type of the computation")

    @property
    def trains(self) -> tuple[str, ...]:
        """Patterns of node names whose parameters train: float32, and the run's own; each must match a node."""
        return ()

    @property
    def patterns(self) -> Mapping[tuple[str, ...], tuple[str, ...]]:
        """All patterns of node names in the run, by where they stand."""
        return {self.trains_key: self.trains}

    @property
    def computation(self) -> tuple[Device, DType]:
        """The device and the number type that the run computes with."""
        return self.device, self.dtype

    @property
    def compiles(self) -> bool:
        """Whether torch.compile is wanted."""
        return False

    def check(self, teacher: Teacher | None, data: Data) -> None:
        """Raise :class:`~caramba_core.errors.InvalidValue` for settings that do not go with the run's group."""

    def check_model(self, graph: Graph, sites: Sequence[Site]) -> None:
        """Raise :class:`~caramba_core.errors.InvalidValue` for settings that do not go with the model.

        ``sites`` are the nodes that differ from the teacher's.  Plans ask it too, where the teacher is on this machine.
        """

    def check_before(self, device: str, sites: Sequence[Site]) -> None:
        """Raise :class:`~caramba_core.errors.CarambaError` for what would stop the run later; nothing is built yet.

        A mode that needs settings of the process (environment variables that libraries read once) makes them here.

        ``device`` is ``cpu``, ``cuda`` or ``mps``; ``sites`` are the nodes that differ from the teacher's.
        """

    def check_launch(self) -> None:
        """Raise :class:`~caramba_core.errors.CarambaError` where this process cannot do the run: not in a dry run."""

    def check_inputs(self, tokens: Tokens | None, tokenizer: Tokenizer | None) -> None:
        """Raise :class:`~caramba_core.errors.InvalidValue` where what the run reads does not do; nothing is built yet.

        ``tokens`` are those of ``data.train``, ``tokenizer`` is the teacher's: each where the mode needs it.
        """

    def workload(self, evaluation: Evaluation, vocab_size: int) -> Workload:
        """What the run computes; one pass without gradients as held-out tokens take it, if not defined otherwise."""
        return Workload(batch_size=evaluation.batch_size, context=evaluation.context, dtype=self.dtype)

    def planned(self, plan: Any, model: Any, teacher: Any, own: frozenset[str]) -> Any:
        """The :class:`~caramba_core.plan.RunPlan` of this run, with what its workload does not tell.

        ``model`` is the :class:`~caramba_core.plan.ModelPlan` of the student for sequences of the run's length,
        ``teacher`` that of the teacher, if known; ``own`` names nodes and weights that are not the teacher's meanwhile.
        """
        return plan

    def changes(self, graph: Graph, converted: frozenset[str]) -> frozenset[str]:
        """Nodes or weights of the student's ``graph`` that the run changes beside what trains, by dotted name.

        ``converted`` names the attentions that differ from the teacher's.
        """
        return frozenset()
