"""The modes ``train`` and ``generate`` (configs; light)."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Final

from caramba_core.components import Attention, Storage, component, evolve, option
from caramba_core.errors import InputError, InvalidValue, PluginError
from caramba_core.graph import trained_nodes
from caramba_core.modes import Data, Device, DType, Evaluation, Need, Run, Teacher, Workload
from caramba_plugins_standard.parallel import require_processes
from caramba_plugins_standard.training import Training
from caramba_plugins_standard.training.planning import (
    adapted_matrices,
    divided_plan,
    with_adapters,
    with_optimizers,
    with_recomputing,
    with_states,
)
from caramba_plugins_standard.training.rates import node_factors

if TYPE_CHECKING:
    from caramba_core.datasets import Tokens
    from caramba_core.graph import Graph
    from caramba_core.plan import ModelPlan, RunPlan
    from caramba_core.sites import Site
    from caramba_core.teachers import Tokenizer

__all__ = ["CUBLAS_WORKSPACE", "Generate", "Sampling", "Train", "blamed_on"]

_log = logging.getLogger("caramba.run")

CUBLAS_WORKSPACE: Final = "CUBLAS_WORKSPACE_CONFIG"
"""The environment variable that gives cuBLAS workspaces of fixed sizes, without which its results vary."""


@contextmanager
def blamed_on(field: str | None, *within: str) -> Iterator[None]:
    """What the block lacks is due to a setting: it is raised as the :class:`InvalidValue` of that one.

    With no field, it is due to all settings together.
    """
    try:
        yield
    except (InputError, PluginError) as error:
        raise InvalidValue(field, error.message, expected=error.expected, hint=error.hint, within=within) from error


@component
class Train(Run):
    """Train the student with a strategy; measured before and after."""

    builds: ClassVar[str] = "caramba_plugins_standard.training.loop:TrainRunner"
    needs: ClassVar[frozenset[Need]] = frozenset({"data.train"})
    changes_weights: ClassVar[bool] = True
    resumes: ClassVar[bool] = True
    without_effect: ClassVar[frozenset[str]] = Run.without_effect | {
        *("train.device", "train.checkpoint_every", "train.checkpoint_minutes", "train.checkpoint_async"),
        *(
            "train.evaluate_every",
            "train.keep",
            "train.trackers",
            "train.profile",
            "train.activation_checkpointing",
            "train.parallel",
        ),
    }
    may_change: ClassVar[frozenset[str]] = frozenset(
        {
            *("steps", "train.lr", "train.lr_factors", "train.clip", "train.schedule", "train.dtype"),
            *("train.on_nonfinite", "train.skip_spikes"),
        }
    )
    trains_key: ClassVar[tuple[str, ...]] = ("train", "trains")

    steps: int = option(help="training steps", unit="steps", minimum=0)
    train: Training = option(help="how it trains")

    @property
    def trains(self) -> tuple[str, ...]:
        """Those under ``train.trains``; all nodes, or with adapters none, where nothing stands there."""
        if self.train.trains is None:
            return ("*",) if self.train.lora is None else ()
        return self.train.trains

    @property
    def patterns(self) -> Mapping[tuple[str, ...], tuple[str, ...]]:
        """Those of what trains, of what gets adapters, and of what is computed again."""
        again, lora = self.train.activation_checkpointing, self.train.lora
        return {
            self.trains_key: self.trains,
            ("train", "lora", "targets"): () if lora is None else lora.targets,
            ("train", "activation_checkpointing"): again if isinstance(again, tuple) else (),
        }

    @property
    def computation(self) -> tuple[Device, DType]:
        """As ``train:`` says."""
        return self.train.device, self.train.dtype

    @property
    def compiles(self) -> bool:
        """As ``train:`` says; ``auto`` is on CUDA, where Triton is installed."""
        if self.train.compile != "auto":
            return self.train.compile
        from torch.utils._triton import has_triton

        from caramba_core.run.device import pick_device

        return pick_device(self.train.device).type == "cuda" and has_triton()

    def check(self, teacher: Teacher | None, data: Data) -> None:
        """A strategy may need a teacher, evaluations need held-out tokens."""
        if self.train.strategy.needs_teacher and teacher is None:
            raise InvalidValue(
                "train",
                "this strategy learns from a teacher, and the group has none",
                hint="add teacher: {source: ...} to the group",
                within=("strategy",),
            )
        if self.train.strategy.needs_weights and teacher is None and self.from_ is None:
            raise InvalidValue(
                "train",
                "this strategy goes on from weights, and the group has no teacher to take them from",
                hint="add teacher: {source: ...} to the group, or from: GROUP/RUN to the run; pretrain begins anew",
                within=("strategy",),
            )
        if self.train.evaluate_every is not None and data.heldout is None:
            raise InvalidValue(
                "train", "there is nothing to measure on: the group has no data.heldout", within=("evaluate_every",)
            )
        for within in (("keep", "best"), ("patience",)):
            wanted = self.train.keep.best if within[0] == "keep" else self.train.patience
            if wanted is not None and self.train.evaluate_every is None:
                raise InvalidValue(
                    "train",
                    "nothing is measured on the way, so that no checkpoint is the best",
                    expected=f"evaluate_every: STEPS beside {within[0]}",
                    within=within,
                )

    def check_model(self, graph: Graph, sites: Sequence[Site]) -> None:
        """A strategy may train some nodes only; a pattern of adapters, or of what is computed again, does something."""
        trained = trained_nodes(graph, self.trains)
        self.train.strategy.check(graph, sites, trained)
        _check_rounding(graph, self.train.cache)
        lora, again = self.train.lora, self.train.activation_checkpointing
        adapted = {} if lora is None else adapted_matrices(graph, lora, trained)
        node_factors(graph, self.train.lr_factors, trained | {name.rpartition(".")[0] for name in adapted})
        for place, pattern in enumerate(() if lora is None else lora.targets):
            if lora is not None and not adapted_matrices(graph, evolve(lora, targets=(pattern,)), trained):
                raise InvalidValue(
                    "train",
                    f"{pattern!r} names no matrix that gets an adapter: not embedder, head, and what trains as a whole",
                    expected="patterns of nodes with projections, such as attention or mlp",
                    within=("lora", "targets", place),
                )
        for place, pattern in enumerate(again if isinstance(again, tuple) else ()):
            if trained_nodes(graph, (pattern,)) <= {graph.embedder.name, graph.head.name}:
                raise InvalidValue(
                    "train",
                    f"of {pattern!r} nothing is kept that could be computed again",
                    expected="patterns of nodes between embedder and head, such as mlp",
                    within=("activation_checkpointing", place),
                )

    def check_before(self, device: str, sites: Sequence[Site]) -> None:
        """CUDA graphs need CUDA; the same bits need workspaces of fixed sizes."""
        if self.train.cuda_graph is True and device != "cuda":
            raise InputError(
                f"run {self.id}: train.cuda_graph needs a CUDA device, and this one is {device}",
                hint="leave cuda_graph out, or run where CUDA is",
            )
        if self.train.float8 and device != "cpu":  # which computes the same, slowly
            import torch

            if device != "cuda" or torch.cuda.get_device_capability() < (8, 9):
                raise InputError(
                    f"run {self.id}: train.float8 needs a GPU that multiplies 8-bit floats (Ada, Hopper or later)",
                    hint="leave float8 out",
                )
        for tracker in self.train.trackers:
            tracker.require()
        for key in ("checkpoint_every", "evaluate_every"):
            every = getattr(self.train, key)
            if every is not None and every > self.steps:
                _log.warning(f"warning: run {self.id}: train.{key} ({every}) is beyond its {self.steps} steps")
        warmup = getattr(self.train.schedule, "warmup", 0)
        if warmup > self.steps > 0:
            _log.warning(
                f"warning: run {self.id}: the warm-up ({warmup:g} steps) does not end in its {self.steps} steps"
            )
        if self.train.deterministic:  # cuBLAS reads this once, before its first product of a process
            os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")

    def check_launch(self) -> None:
        """Processes must be there."""
        with blamed_on("train", "parallel", "data"):
            require_processes(self.id, self.train.parallel.data)

    def check_inputs(self, tokens: Tokens | None, tokenizer: Tokenizer | None) -> None:
        """There must be a window to train on."""
        from caramba_plugins_standard.marks import is_marked
        from caramba_plugins_standard.training.windows import Windows

        assert tokens is not None  # the mode needs them
        if is_marked(tokens) and not self.train.strategy.takes_documents:
            with blamed_on("train", "strategy"):
                name = type(self.train.strategy).__name__
                raise InputError(f"{name} does not keep documents apart", hint="leave documents out of data.train")
        with blamed_on("train", "context"):
            Windows(tokens, context=self.train.context, seed=self.seed)

    def planned(self, plan: RunPlan, model: ModelPlan, teacher: ModelPlan | None, own: frozenset[str]) -> RunPlan:
        """Adapters train beside frozen matrices; activations that are computed again are not kept; of one process."""
        load = self.workload(Evaluation(), model.graph.vocab_size)
        if self.train.lora is not None:
            plan = with_adapters(plan, self, load, model, teacher, own)
        plan = with_optimizers(with_states(with_recomputing(plan, self, model), self, model), self, model)
        return divided_plan(plan, self, model, teacher)

    def changes(self, graph: Graph, converted: frozenset[str]) -> frozenset[str]:
        """The matrices that adapters are added to at the end."""
        if self.train.lora is None:
            return frozenset()
        return frozenset(adapted_matrices(graph, self.train.lora, trained_nodes(graph, self.trains)))

    def workload(self, evaluation: Evaluation, vocab_size: int) -> Workload:
        """Every step's sequences, forward and backward."""
        train = self.train.complete()
        assert train.optimizer is not None
        return Workload(
            batch_size=train.batch_size // train.parallel.data,
            context=train.context,
            dtype=train.dtype,
            sequences=self.steps * train.accumulate * train.batch_size,
            batches=train.accumulate,
            uses_teacher=train.strategy.needs_teacher,
            whole_model=train.strategy.whole_model,
            state_values=train.optimizer.state_values() + (train.ema is not None),
            state_scalars=train.optimizer.state_scalars(),
            logit_values=train.strategy.logit_values(
                train.batch_size // train.parallel.data * train.context, vocab_size
            ),
        )


@component
class Sampling:
    """How the next token is chosen: the likeliest, or drawn as transformers' ``generate`` does.

    Any setting but the penalty makes it a draw, unless the temperature is 0.
    """

    temperature: float | None = option(
        default=None, help="logits are divided by it before a draw; 0 takes the likeliest token", minimum=0.0
    )
    top_k: int | None = option(default=None, help="draw from so many of the likeliest tokens", minimum=1)
    top_p: float | None = option(
        default=None, help="draw from the likeliest tokens of this probability together", minimum=0.0, maximum=1.0
    )
    min_p: float | None = option(
        default=None, help="draw from tokens of this share of the likeliest one's probability", minimum=0.0, maximum=1.0
    )
    repetition_penalty: float | None = option(
        default=None, help="logits of tokens of the text so far are divided by it, negative ones multiplied", above=0.0
    )

    def __attrs_post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise InvalidValue(name, f"{value} is not a finite number")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        if self.temperature is not None:
            return self.temperature == 0
        return self.top_k is None and self.top_p is None and self.min_p is None


@component
class Generate(Run):
    """Continue a prompt through the model's own cache, greedily or by sampling, to the token that ends a text."""

    builds: ClassVar[str] = "caramba_plugins_standard.generation:GenerateRunner"
    needs: ClassVar[frozenset[Need]] = frozenset({"tokenizer", "weights"})
    measures: ClassVar[bool] = False
    heeds_evaluation: ClassVar[bool] = True

    prompt: str = option(help="text to continue")
    max_new_tokens: int = option(default=128, help="most tokens to add", unit="tokens", minimum=1)
    add_bos: bool | None = option(default=None, help="begin with BOS; as the checkpoint's tokenizer does if not given")
    special_tokens: bool = option(default=True, help="read what spells a special token in the prompt as one")
    ignore_eos: bool = option(default=False, help="go on behind the tokens that end a text or a turn")
    sampling: Sampling = option(factory=Sampling, help="how the next token is chosen: greedily if not given")

    def check_inputs(self, tokens: Tokens | None, tokenizer: Tokenizer | None) -> None:
        """The prompt must hold a token."""
        from caramba_plugins_standard.generation import prompt_ids

        assert tokenizer is not None  # the mode needs one
        with blamed_on("prompt"):
            prompt_ids(self, tokenizer)

    def workload(self, evaluation: Evaluation, vocab_size: int) -> Workload:
        """One sequence, through a cache of its new tokens; the prompt's come on top."""
        return Workload(batch_size=1, context=self.max_new_tokens, dtype=self.dtype, caches=True)


def _check_rounding(graph: Graph, cache: Storage | None) -> None:
    """Raise :class:`InvalidValue` where caches are rounded beside an attention that caches a state.

    A pass over whole sequences takes no steps from state to state.
    """
    specs = {
        name: (node.config, node.config.cache_spec(node.width_in))
        for name, node in graph.attentions().items()
        if isinstance(node.config, Attention)
    }
    kept = [(cache or config.cache, spec) for config, spec in specs.values()]
    rounds = any(storage is not None and any(map(storage.quantizes, spec.values())) for storage, spec in kept)
    for name, (config, spec) in specs.items():
        states = [key for key, entry in spec.items() if not entry.per_token]
        if rounds and states:
            raise InvalidValue(
                "train",
                f"{name} ({type(config).__name__}) caches no keys and values of tokens, but {', '.join(states)}",
                hint="leave cache out, or take another attention",
                within=() if cache is None else ("cache",),
            )
