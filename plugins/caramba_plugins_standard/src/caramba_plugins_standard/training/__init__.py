"""What a training run is made of: strategies, optimizers, schedules, and their settings (configs; light)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import attrs

from caramba_core.components import Component, Storage, Topology, component, evolve, option
from caramba_core.errors import InvalidValue
from caramba_core.modes import Device, DType, Run
from caramba_plugins_standard.parallel import Parallel
from caramba_plugins_standard.trackers import Tracker

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager

    import torch
    from torch import Tensor, nn

    from caramba_core.graph import Graph
    from caramba_core.nn.language_model import LanguageModel
    from caramba_core.run.context import GroupContext
    from caramba_core.run.directory import RunDirectory
    from caramba_core.sites import Site
    from caramba_plugins_standard.training.batch import Batch

__all__ = [
    "Keep",
    "LoRA",
    "Optimizer",
    "Profile",
    "Schedule",
    "StepResult",
    "Strategy",
    "StrategyRunner",
    "Training",
    "TrainingContext",
    "block_count",
]


@component
class Optimizer(Component):
    """How parameters move; ``builds`` is not used: :meth:`create` imports torch itself."""

    kind: ClassVar[str] = "optimizer"
    builds: ClassVar[str] = ""

    def create(self, parameters: Iterable[Mapping[str, Any]], lr: float) -> torch.optim.Optimizer:
        """The torch optimizer over parameter groups; those of embedder and head have the key ``tables``."""
        raise NotImplementedError(f"{type(self).__name__} does not define create")

    def moving(self, shape: tuple[int, ...], *, table: bool) -> Optimizer:
        """What moves a weight of this shape, of embedder or head if a ``table``: this one, or another beside it."""
        return self

    def state_values(self) -> int:
        """Values of state a trained parameter, each in the parameter's dtype (Adam: 2)."""
        raise NotImplementedError(f"{type(self).__name__} does not define state_values")

    def state_scalars(self) -> int:
        """float32 numbers of state a trained tensor (Adam: 1, its count of steps)."""
        return 0


@component
class Schedule(Component):
    """How the learning rate moves: a factor of ``lr`` for each step."""

    kind: ClassVar[str] = "schedule"
    builds: ClassVar[str] = ""

    def factor(self, step: int, steps: int) -> float:
        """Multiplier of the learning rate at ``step`` (0-based) of ``steps``."""
        raise NotImplementedError(f"{type(self).__name__} does not define factor")


@attrs.frozen(kw_only=True)
class StepResult:
    """What one forward and backward gave: ``loss`` (detached, on the device) and ``metrics``, never synchronized."""

    loss: Tensor
    metrics: Mapping[str, Tensor] = attrs.field(factory=dict)


class TrainingContext(Protocol):
    """What a strategy sees of the run that it is part of.

    ``student`` is the model that trains, ``teacher`` (frozen) what it learns from.  ``sites`` are the nodes that differ
    between the two, ``trained`` the names of the nodes that train.  ``run.compiles``: whether torch.compile is wanted.
    ``shared.tokens("train")`` are the tokens; ``directory.path`` is the run's folder.
    """

    @property
    def student(self) -> LanguageModel: ...  # noqa: D102
    @property
    def teacher(self) -> LanguageModel: ...  # noqa: D102
    @property
    def sites(self) -> Sequence[Site]: ...  # noqa: D102
    @property
    def trained(self) -> frozenset[str]: ...  # noqa: D102
    @property
    def run(self) -> Run: ...  # noqa: D102
    @property
    def shared(self) -> GroupContext: ...  # noqa: D102
    @property
    def directory(self) -> RunDirectory: ...  # noqa: D102
    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters that train, by dotted name."""
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """Computation in the run's number type; weights that train stay in float32."""
        ...


class StrategyRunner(Protocol):
    """What a strategy's ``builds`` makes, as ``cls(config, context)``."""

    def prepare(self) -> None:
        """Once before the first step: build what the steps need, mark what trains."""
        ...

    def step(self, batch: Batch) -> StepResult:
        """Forward and backward of one pass; gradients accumulate, the loop divides by the passes and moves weights.

        A loss over predicted tokens is a sum that goes through ``batch.mean``, so that each of a step's counts the
        same; ``batch.frame(model)`` keeps documents apart.
        """
        ...


@component
class Strategy(Component):
    """What a training step is; ``builds`` is a class ``(config, context: TrainingContext) -> StrategyRunner``."""

    kind: ClassVar[str] = "strategy"
    needs_teacher: ClassVar[bool] = False
    needs_weights: ClassVar[bool] = False
    """Whether it goes on from weights, a teacher's or another run's: a student that would be drawn is refused."""

    takes_documents: ClassVar[bool] = False
    """Whether its runner heeds documents and what is not to be predicted: the frame and targets of its batches."""

    whole_model: ClassVar[bool] = True
    """Whether a step runs backward through the whole model from its logits, or through one trained node at a time."""

    def logit_values(self, rows: int, vocab_size: int) -> int:
        """float32 values of logits, and of what is made of them, held at once in a step of ``rows`` tokens.

        For memory estimates.  This one assumes logits, their logarithms and the gradients of both, of a teacher too
        where one is needed, for as many tokens as the field ``logit_rows`` says; for all of them without such a field.
        """
        held = min(rows, getattr(self, "logit_rows", rows))
        return held * vocab_size * (8 if self.needs_teacher else 4) if self.whole_model else 0

    @property
    def takes_graphs(self) -> bool:
        """Whether a step can be recorded as a CUDA graph: it waits for nothing, and reads no file."""
        return True

    def file_bytes(self, tokens: int, vocab_size: int) -> int:
        """Bytes that it keeps in files beside the run, at most, of ``tokens`` tokens that are trained on."""
        return 0

    def kept_states(self, blocks: int) -> int:
        """Hidden states ``[B, T, D]`` behind ``blocks`` blocks that a step keeps for its loss: a teacher's, say."""
        return 0

    @property
    def takes_processes(self) -> bool:
        """Whether several processes can train together."""
        return True

    def check(self, graph: Graph, sites: Sequence[Site], trained: frozenset[str]) -> None:
        """Raise :class:`InvalidValue` of ``train`` where this strategy cannot train these nodes, before any step.

        ``sites`` are the nodes of the graph that differ from the teacher's.
        """

    def start(self, context: TrainingContext) -> StrategyRunner:
        """The runner of this strategy."""
        from caramba_core.nn.build import load_object

        runner: StrategyRunner = load_object(self.builds)(self, context)
        return runner


def block_count(graph: Graph) -> int:
    """How many blocks one pass runs, behind which hidden states are: repetitions of a topology."""
    return sum(
        scope.applications
        for node in graph.walk()
        if isinstance(node.config, Topology) and node.config.inline is None and node.config.flow == "chain"
        for scope in node.scopes
    )


@component
class Keep:
    """Which checkpoints of a run stay; the last one is its result."""

    last: int = option(default=2, help="so many of the last ones", minimum=1)
    every: int | None = option(
        default=None, help="those of every so many steps, which are saved for it", unit="steps", minimum=1
    )
    best: Literal["perplexity"] | None = option(
        default=None, help="that of the best evaluation so far, which is saved for it; needs evaluate_every"
    )


@component
class Profile:
    """A trace of some steps, by torch's profiler, in the run's folder."""

    steps: tuple[int, int] = option(help="the first and the last step that are traced, counted from 1")

    def __attrs_post_init__(self) -> None:
        first, last = self.steps
        if not 1 <= first <= last:
            raise InvalidValue("steps", f"[{first}, {last}] are no steps", expected="[FIRST, LAST], from 1 on")


@component
class LoRA:
    """Low-rank adapters (arXiv 2106.09685): a matrix stays as it is, and ``alpha / rank`` times ``B A`` is added to it.

    ``A``, ``[rank, in]``, and ``B``, ``[out, rank]``, train.  Checkpoints hold the sum, so that whatever comes behind
    the run needs to know nothing of it.
    """

    rank: int = option(default=16, help="rank of what is added to each matrix", minimum=1)
    alpha: float | None = option(
        default=None, help="what is added is scaled by alpha / rank; by 1 if not given", above=0.0
    )
    targets: tuple[str, ...] = option(
        default=("*",), help="patterns of nodes whose matrices get one; embedder, head and what trains itself get none"
    )

    def __attrs_post_init__(self) -> None:
        if not self.targets or not all(self.targets):
            raise InvalidValue(
                "targets", "an empty list, or an empty pattern, names no node", expected="[attention, mlp]"
            )

    @property
    def scale(self) -> float:
        """What the product of both matrices is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@component
class Training:
    """How a run trains."""

    strategy: Strategy = option(help="what a step is")
    trains: tuple[str, ...] | None = option(
        default=None, help="patterns of node names whose parameters train; if not given all, or with lora none"
    )
    lora: LoRA | None = option(default=None, help="train low-rank adapters of matrices that stay as they are")
    device: Device = option(default="auto", help="auto takes CUDA, then MPS, then the CPU")
    dtype: DType = option(default="float32", help="type of the computation; weights that train stay in float32")
    batch_size: int = option(default=8, help="sequences per pass, of all processes together", minimum=1)
    accumulate: int = option(default=1, help="passes that make one step", minimum=1)
    context: int = option(default=1024, help="tokens per sequence", unit="tokens", minimum=2)
    lr: float = option(help="highest learning rate", above=0.0, maximum=1.0)
    lr_factors: Mapping[str, float] = option(
        factory=dict, help="what the rate is multiplied by for some nodes: patterns to factors, such as {mlp: 0.3}"
    )
    optimizer: Optimizer | None = option(default=None, help="the default one of the installed plugins if not given")
    schedule: Schedule | None = option(default=None, help="the default one of the installed plugins if not given")
    cache: Storage | None = option(
        default=None,
        help="attention reads keys and values rounded as a cache of this kind stores them, and what trains learns with "
        "that; each attention's own cache if not given",
    )
    clip: float | None = option(default=1.0, help="largest norm of the gradient; null for no clipping", above=0.0)
    ema: float | None = option(
        default=None,
        help="decay of a running mean of the weights over steps, which is the result in their place: 0.99 is a mean of "
        "about the last 100 steps",
        above=0.0,
        below=1.0,
    )
    parallel: Parallel = option(factory=Parallel, help="several processes, one a device, that train together")
    compile: bool | Literal["auto"] = option(
        default="auto", help="compile each repeated block with torch.compile; auto does on CUDA"
    )
    float8: bool = option(
        default=False, help="multiply in 8-bit floats inside of layers: faster where products are large, from Ada on"
    )
    cuda_graph: bool | Literal["auto"] = option(
        default=False,
        help="record a step once and replay it: faster where kernels are short; auto does on CUDA where launching them "
        "takes as long as running them",
    )
    activation_checkpointing: Literal["none", "full"] | tuple[str, ...] = option(
        default="none",
        help="what is computed again in the backward pass instead of kept: full for every block, or patterns of nodes",
    )
    deterministic: bool = option(
        default=False, help="only algorithms that give the same bits every time, on CUDA too, where they are slower"
    )
    checkpoint_every: int | None = option(default=None, help="steps between checkpoints", unit="steps", minimum=1)
    checkpoint_minutes: float | None = option(
        default=10.0,
        help="minutes between checkpoints, where checkpoint_every is not given; null for none but the last",
        unit="minutes",
        above=0.0,
    )
    checkpoint_async: bool | Literal["auto"] = option(
        default="auto",
        help="write checkpoints while training goes on, from a copy in main memory; auto does on CUDA",
    )
    evaluate_every: int | None = option(default=None, help="steps between evaluations", unit="steps", minimum=1)
    patience: int | None = option(
        default=None,
        help="evaluations in a row without a better one that end the run, whose result is its best checkpoint, however "
        "it ends; needs evaluate_every",
        minimum=1,
    )
    keep: Keep = option(factory=Keep, help="which checkpoints stay")
    on_nonfinite: str = option(
        default="stop",
        help="what a loss or gradient that is not finite does: ends the run, or skips its step, up to K in a row",
        pattern="stop|skip [1-9][0-9]{0,5}",
        form="stop, or skip K",
    )
    trackers: tuple[Tracker, ...] = option(default=(), help="where its numbers go beside its own folder")
    profile: Profile | None = option(default=None, help="trace some steps")
    skip_spikes: float | None = option(
        default=None,
        help="skip steps whose gradient norm is so many times the median of the last 128",
        above=1.0,
    )

    def __attrs_post_init__(self) -> None:
        if self.trains is not None and not (self.trains and all(self.trains)):
            what = "there is no pattern" if not self.trains else "an empty pattern matches nothing"
            raise InvalidValue("trains", what, expected="names of nodes, or patterns such as blocks.*.attention")
        for pattern, factor in self.lr_factors.items():
            if not 0.0 < self.lr * factor <= 1.0:
                raise InvalidValue(
                    "lr_factors",
                    f"{factor:g} times lr is {self.lr * factor:g}",
                    expected="a rate above 0 and up to 1; what is not to train is left out of trains",
                    within=(pattern,),
                )
        if self.activation_checkpointing != "none":
            self._check_checkpointing()
        if self.lora is not None and not self.strategy.whole_model:
            raise InvalidValue("lora", "this strategy trains one node at a time, as a whole", hint="leave lora out")
        if self.batch_size % self.parallel.data:
            raise InvalidValue(
                "batch_size",
                f"{self.batch_size} sequences cannot be divided among {self.parallel.data} processes alike",
                expected=f"a multiple of parallel.data ({self.parallel.data}): it counts those of all processes",
            )
        if self.parallel.data > 1 and not self.strategy.takes_processes:
            why = "this strategy keeps a file that several processes cannot write"
            raise InvalidValue("parallel", why, expected="1 with this strategy", within=("data",))
        if self.parallel.data > 1 and self.cuda_graph is True:
            raise InvalidValue("cuda_graph", "a step of several processes is not recorded", expected="false")
        if self.dtype == "float16":
            raise InvalidValue(
                "dtype",
                "float16 has no room for small gradients, which become zero: nothing here scales the loss",
                expected="bfloat16 or float32",
            )
        if self.cuda_graph is True and not self.strategy.takes_graphs:
            raise InvalidValue("cuda_graph", "this strategy reads and writes a file within a step", hint="leave it out")
        if self.float8 and self.dtype != "bfloat16":
            raise InvalidValue("float8", f"with dtype: {self.dtype} it does nothing", expected="dtype: bfloat16")

    def _check_checkpointing(self) -> None:
        why = None
        if self.cuda_graph is True:
            why = "random states cannot be kept for it while cuda_graph records a step"
        elif not self.strategy.whole_model:
            why = "this strategy runs backward through one node at a time, so that there is little to keep"
        elif not self.activation_checkpointing or not all(self.activation_checkpointing):
            why = "an empty list, or an empty pattern, names no node"
        if why is not None:
            raise InvalidValue("activation_checkpointing", why, expected="none, full, or patterns such as mlp")

    def complete(self) -> Training:
        """The same settings with the default optimizer and schedule where none is named."""
        from caramba_core.plugins.registry import registry

        missing = [kind for kind in ("optimizer", "schedule") if getattr(self, kind) is None]
        return evolve(self, **{kind: registry().default(kind) for kind in missing})
