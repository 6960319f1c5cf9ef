"""What a manifest says, typed.  Reading, errors and positions are the business of the modules beside this one."""

from __future__ import annotations

from typing import Final, Literal

from caramba_core.component import component, option
from caramba_core.model import Model
from caramba_core.storage import Storage
from caramba_core.training import Dataset, Optimizer, Schedule, Strategy
from caramba_core.transplant import Transplant

__all__ = [
    "Data",
    "Evaluation",
    "Group",
    "Manifest",
    "Run",
    "Start",
    "Teacher",
    "Train",
    "Verify",
]

_NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"
_NAME_FORM: Final = "a folder name: letters, digits, . _ - (no . or - in front), at most 100"

Device = Literal["auto", "cpu", "cuda", "mps"]
DType = Literal["float32", "bfloat16", "float16", "float64"]


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

    context: int = option(default=1024, help="tokens a window", unit="tokens", minimum=2)
    windows: int = option(default=32, help="windows measured", minimum=1)
    batch_size: int = option(default=1, help="windows a pass", minimum=1)
    cache: Literal["full", "int8", "int4"] = option(
        default="full",
        help="how keys and values are kept: as computed, or rounded; the student is measured, and generates, reading "
        "all of them back from such a cache",
    )
    cache_block: int = option(
        default=32, help="values that share a step and an offset in a rounded cache", unit="values", minimum=1
    )

    @property
    def storage(self) -> Storage | None:
        """How the cache is kept; none where it keeps what was computed."""
        return Storage.named(self.cache, self.cache_block)


@component
class Start:
    """How the student's attentions start (mode ``convert``)."""

    transplant: Transplant | None = option(
        default=None, help="how one attention starts from the other; found by their types if not given"
    )
    tokens: int = option(default=32768, help="calibration tokens", unit="tokens", minimum=1)
    max_context: int = option(
        default=1024,
        help="tokens a calibration window: attention is measured up to this distance, so take what will be served",
        unit="tokens",
        minimum=2,
    )
    batch_size: int = option(default=4, help="windows a calibration pass", minimum=1)
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
    cache_budget: str | None = option(
        default=None,
        help="cached values a token, as a share of the teacher's, to be divided among layers (mode allocate)",
        pattern=r"(0?\.\d+|1(\.0+)?)x",
        form="a share of the teacher's, such as 0.5x",
    )
    allocation_step: float = option(
        default=0.5,
        help="how far sizes by layer go from equal shares (0) to the optimum that is predicted (1); predictions hold "
        "best near equal shares",
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
class Train:
    """How a run trains."""

    strategy: Strategy = option(help="what a step is")
    trains: tuple[str, ...] = option(default=("*",), help="patterns of node names whose parameters train")
    device: Device = option(default="auto", help="auto takes CUDA, then MPS, then the CPU")
    dtype: DType = option(default="float32", help="type of the computation; weights that train stay in float32")
    batch_size: int = option(default=8, help="sequences a step", minimum=1)
    accumulate: int = option(default=1, help="passes that make one step", minimum=1)
    context: int = option(default=1024, help="tokens a sequence", unit="tokens", minimum=2)
    lr: float = option(help="highest learning rate", above=0.0, maximum=1.0)
    optimizer: Optimizer | None = option(default=None, help="adamw if not given")
    schedule: Schedule | None = option(default=None, help="cosine if not given")
    clip: float | None = option(default=1.0, help="largest norm of the gradient; null for no clipping", above=0.0)
    compile: bool = option(default=False, help="compile each repeated block with torch.compile")
    cuda_graph: bool = option(
        default=False, help="record a step once and replay it: faster where kernels are short; CUDA only"
    )
    deterministic: bool = option(
        default=False, help="only algorithms that give the same bits every time, on CUDA too, where they are slower"
    )
    checkpoint_every: int | None = option(default=None, help="steps between checkpoints", unit="steps", minimum=1)
    evaluate_every: int | None = option(default=None, help="steps between evaluations", unit="steps", minimum=1)


@component
class Verify:
    """Thresholds that a run must meet; a miss ends with exit code 3 and keeps the artifacts."""

    perplexity_ratio_at_most: float | None = option(default=None, help="end perplexity / teacher's", above=0.0)


@component
class Run:
    """One stage of a group."""

    id: str = option(help="name of the run, and of its folder", pattern=_NAME, form=_NAME_FORM)
    mode: str = option(help="what the run does: convert, train, eval, generate, or a plugin's mode")
    seed: int = option(default=0, help="seed of everything random", minimum=0)
    steps: int | None = option(default=None, help="training steps", unit="steps", minimum=0)
    from_: str | None = option(
        default=None, help="run whose result this one continues; the previous one of the group if not given (key: from)"
    )
    start: Start | None = option(default=None, help="how the attentions start (mode convert)")
    train: Train | None = option(default=None, help="how it trains (mode train)")
    eval: Evaluation | None = option(default=None, help="how it is measured; the group's if not given")
    verify: Verify | None = option(default=None, help="what must hold at the end")
    device: Device = option(default="auto", help="device of modes without train")
    dtype: DType = option(default="float32", help="type of the computation in modes without train")
    prompt: str | None = option(default=None, help="text to continue (mode generate)")
    max_new_tokens: int = option(default=128, help="tokens to add (mode generate)", unit="tokens", minimum=1)

    @property
    def task(self) -> str:
        """The mode without the distribution that supplies it."""
        return self.mode.rpartition(":")[2]


@component
class Group:
    """Runs over one model, teacher and data.  ``vars`` and ``extends`` are resolved before this is made."""

    name: str = option(help="name of the group, and of its folder", pattern=_NAME, form=_NAME_FORM)
    teacher: Teacher | None = option(default=None, help="the pretrained model")
    data: Data | None = option(default=None, help="the tokens")
    eval: Evaluation | None = option(default=None, help="how its runs are measured")
    model: Model = option(help="the manifest's model under this group's variables")
    runs: tuple[Run, ...] = option(help="the runs, in order")


@component
class Manifest:
    """A whole manifest, resolved: one model a group."""

    version: Literal[1] = option(help="version of the manifest language")
    name: str = option(help="name of the experiment, and of its folder under runs/", pattern=_NAME, form=_NAME_FORM)
    requires: tuple[str, ...] = option(default=(), help="distributions that must be installed, with version ranges")
    model: Model = option(help="the model under the manifest's own variables")
    groups: tuple[Group, ...] = option(default=(), help="collections of runs")
