"""What a mode, a strategy and a hook may know of the run that they are part of, and do in it."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from caramba_terminal.limit import Limit, Paused
from caramba_terminal.reporter import Reporter
from torch import Tensor, nn

from caramba_core.datasets import Tokens
from caramba_core.errors import CarambaError, InputError, ManifestError, NumericalStop, PluginError
from caramba_core.graph import ROOT, Graph, trained_nodes
from caramba_core.lowered import blaming, group_path, located, lower_group
from caramba_core.manifest.load import Loaded
from caramba_core.manifest.schema import Group
from caramba_core.modes import Evaluator, Run
from caramba_core.nn.language_model import LanguageModel
from caramba_core.plan.checks import run_faults
from caramba_core.plugins.registry import registry
from caramba_core.run.checkpoint import load_random, load_tensors, read_state, restore_optimizer, save_checkpoint
from caramba_core.run.device import autocast, pick_device, torch_dtype
from caramba_core.run.directory import RunDirectory, step_of
from caramba_core.run.overlap import share_found
from caramba_core.run.student import assemble
from caramba_core.sites import Site, find_sites
from caramba_core.teachers import Pretrained, Tokenizer, reader, require_ids

__all__ = ["GroupContext", "RunContext", "check_tokens"]

_log = logging.getLogger("caramba.run")

_SAMPLED = 64
"""Values of each tensor by which a teacher is known again."""


@cache
def _warn(text: str) -> None:
    """Log a warning; the same text once, however many groups and runs it concerns."""
    _log.warning(text)


class GroupContext:
    """What the runs of one group share: manifest, graphs, tokens and, once a run needs it, the teacher."""

    def __init__(self, *, loaded: Loaded, group: Group, graph: Graph, teacher: Pretrained | None) -> None:
        self.loaded = loaded
        self.group = group
        self.graph = graph
        self.source = teacher
        self._teacher: tuple[tuple[torch.device, torch.dtype], LanguageModel] | None = None
        self._tokens: dict[str, Tokens] = {}

    @classmethod
    def open(cls, loaded: Loaded, group: Group) -> GroupContext:
        """A group's context: its graph is lowered, the teacher is fetched where needed, and its headers are read."""
        graph, teacher = lower_group(loaded, group), None
        if group.teacher is not None:
            source = group.teacher.source
            with blaming(loaded, *group_path(loaded, group), "teacher", "source"):
                teacher = reader(source).open(source, loaded.folder, sha256=group.teacher.sha256)
        return cls(loaded=loaded, group=group, graph=graph, teacher=teacher)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The teacher's tokenizer, where it carries one; one that cannot be read is none, behind a warning."""
        if self.source is None:
            return None
        try:
            return self.source.tokenizer()
        except CarambaError as error:
            _warn(f"warning: the teacher's tokenizer is not used, token arrays alone can be: {error}")
            return None

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Where student and teacher differ; empty without a teacher."""
        return () if self.source is None else find_sites(self.source.graph, self.graph)

    def tokens(self, which: Literal["train", "heldout"]) -> Tokens:
        """The tokens under ``data.train`` or ``data.heldout``, checked against the model."""
        if which not in self._tokens:
            dataset = None if self.group.data is None else getattr(self.group.data, which)
            if dataset is None:
                raise InputError(f"group {self.group.name} has no data.{which}, which this run needs")
            found = check_tokens(dataset.open(self.loaded.folder, self.tokenizer), self.graph, self.tokenizer)
            for other in self._tokens.values():
                owner = f"the tokenizer of {other.origin}"
                _require_same_tokenizer(found.origin, found.tokenizer, owner, other.tokenizer)
            self._tokens[which] = found
        return self._tokens[which]

    @cached_property
    def heldout_in_train(self) -> float:
        """The share of the held-out tokens, by sample, that are training tokens too; 0 where there is only one text."""
        if self.group.data is None or self.group.data.train is None or self.group.data.heldout is None:
            return 0.0
        return share_found(self.tokens("train"), self.tokens("heldout"))

    @property
    def identity(self) -> str | None:
        """Of the tokenizer: the teacher's, or else the one that made the tokens seen so far; ``None`` if unknown."""
        if self.tokenizer is not None:
            return self.tokenizer.identity
        return next((tokens.tokenizer for tokens in self._tokens.values() if tokens.tokenizer is not None), None)

    def check_checkpoint(self, path: Path) -> dict[str, Any]:
        """The scalars of a checkpoint.

        Raises :class:`InputError` for one that is damaged, of another run than its folder's, or made with another
        tokenizer.
        """
        state, run = read_state(path), RunDirectory(path.parents[1]).state()
        if run is not None and state["run"] != run.identity:
            problem = f"the checkpoint {path} is of another run than {path.parents[1]}"
            raise InputError(problem, hint="remove it, or start anew with --again")
        owner = "the data's tokenizer" if self.tokenizer is None else "the teacher's tokenizer"
        _require_same_tokenizer(str(path), state.get("tokenizer"), owner, self.identity)
        return state

    def inputs(self, run: Run) -> dict[str, str]:
        """Hashes of what a run reads: tokens, and the teacher's weights by a sample of each."""
        found: dict[str, str] = {}
        if "data.train" in run.needs:
            found["train"] = self.tokens("train").hash
        if self.group.data is not None and self.group.data.heldout is not None:
            found["heldout"] = self.tokens("heldout").hash
        if self._teacher is not None:
            digest = hashlib.sha256()
            for name, tensor in sorted(self._teacher[1].state_dict().items()):
                sample = tensor.detach().flatten()[:: max(1, tensor.numel() // _SAMPLED)][:_SAMPLED]
                digest.update(f"{name} {list(tensor.shape)} {sample.double().tolist()}".encode())
            found[f"teacher in {self._teacher[0][1]}".replace("torch.", "")] = digest.hexdigest()
        return found

    def check(self, run: Run, *, starts: bool = True) -> None:
        """Raise for anything that would stop this run later: data, device, patterns, differences from the teacher."""
        device = pick_device(run.computation[0])
        if self.source is not None:
            self.source.check()
        if "tokenizer" in run.needs and self.tokenizer is None:
            with self._located(*self._path(run), "mode"):
                whose = "the group has no teacher" if self.source is None else "the teacher's checkpoint carries none"
                raise InputError(f"run {run.id} needs a tokenizer: {whose}")
        if "tokenizer" in run.needs and self.tokenizer is not None:
            require_ids(self.tokenizer.stops, self.graph.vocab_size)
        if self.group.data is not None and self.group.data.heldout is not None:
            evaluators = evaluator_classes()
            if run.measures and not evaluators:
                problem = f"group {self.group.name} has data.heldout, and no installed plugin measures anything on it"
                raise PluginError(problem, hint="install one with an evaluator, or leave data.heldout out")
            for evaluator in evaluators:
                with self._located(*(self._path(run) if run.eval else ()), "eval"):
                    evaluator.check(self.tokens("heldout"), self.group.evaluation(run))
        if "data.train" in run.needs:
            self.tokens("train")
            if self.heldout_in_train:
                share, heldout = f"{self.heldout_in_train:.0%}", self.tokens("heldout").origin
                _warn(
                    f"warning: group {self.group.name}: {share} of the held-out tokens are training tokens too"
                    f" ({heldout}): its perplexities are of a text that was seen"
                )
        if faults := list(run_faults(self.loaded, self.group, run, self.graph, self.sites)):
            raise ManifestError(located(self.loaded, faults))
        tokens = self.tokens("train") if "data.train" in run.needs else None
        with self._located(*self._path(run)):
            run.check_before(device.type, self.sites)
            if starts:
                run.check_launch()
            run.check_inputs(tokens, self.tokenizer if "tokenizer" in run.needs else None)

    def _path(self, run: Run) -> tuple[str | int, ...]:
        return "runs", self.group.runs.index(run)

    def _located(self, *path: str | int) -> AbstractContextManager[None]:
        """What is wrong with what the group has under a path, as an error with its place in the manifest."""
        return blaming(self.loaded, *group_path(self.loaded, self.group), *path)

    def teacher(self, device: torch.device, dtype: torch.dtype) -> LanguageModel:
        """The teacher on a device, loaded once, frozen."""
        if self.source is None:
            raise InputError(f"group {self.group.name} has no teacher, which this run needs")
        if self._teacher is None or self._teacher[0] != (device, dtype):
            self._teacher = None
            self._teacher = ((device, dtype), self.source.load(device, dtype))
        return self._teacher[1]

    def forget_teacher(self) -> None:
        """Load the teacher anew where it is asked for again: its modules were changed."""
        self._teacher = None


class RunContext:
    """One run.

    ``group`` has the run's own variables resolved, ``graph`` is the student's, ``evaluation`` is how the run measures.
    ``student`` and ``teacher`` are built when first asked for.  ``parent`` is the checkpoint that the run continues
    from (``lost_parent`` says that it is gone), ``resume_from`` its own last one where it goes on from there; ``step``
    counts the steps of the last one saved.  ``keeps`` says which of its checkpoints stay: the newest two.  ``publish``,
    where a mode sets it, writes them: it is called with what is to be done behind that in the calling thread, with the
    tensors of all files, and with what writes those or copies of them.
    """

    def __init__(
        self,
        *,
        shared: GroupContext,
        run: Run,
        directory: RunDirectory,
        reporter: Reporter,
        hooks: Any,
        parent: Path | None,
        lost_parent: InputError | None = None,
        limit: Limit | None = None,
    ) -> None:
        self.shared = shared
        self.group = shared.group
        self.graph = shared.graph
        self.run = run
        self.directory = directory
        self.reporter = reporter
        self.hooks = hooks
        self.parent = parent
        self.lost_parent = lost_parent
        self.seed = run.seed
        device, self.dtype_name = run.computation
        self.device = pick_device(device)
        self.evaluation = shared.group.evaluation(run)
        self.resume_from: Path | None = None
        self.step = 0
        self.stop_reason: str | None = None
        self.pause_reason: str | None = None
        self.limit = limit or Limit()
        self.keeps: Callable[[list[Path]], list[Path]] = lambda checkpoints: checkpoints[-2:]
        self.publish: Callable[..., None] | None = None
        self._began = time.perf_counter()
        self._superseded: list[Path] | None = None

    # ------------------------------------------------------------------------------------------------ what is there

    @property
    def name(self) -> str:
        """``GROUP/RUN``, as people are told of it."""
        return f"{self.group.name}/{self.run.id}"

    @property
    def sites(self) -> tuple[Site, ...]:
        """Pairs of nodes that differ between teacher and student."""
        return self.shared.sites

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The teacher's tokenizer, where it carries one."""
        return self.shared.tokenizer

    @cached_property
    def teacher(self) -> LanguageModel:
        """The teacher, frozen, on the run's device."""
        return self.shared.teacher(self.device, self.held)

    @property
    def held(self) -> torch.dtype:
        """The type of weights that do not train: the teacher's, or float64 where the run computes in it."""
        if self.dtype_name == "float64":
            return torch.float64
        return torch.float32 if self.group.teacher is None else torch_dtype(self.group.teacher.dtype)

    @cached_property
    def trained(self) -> frozenset[str]:
        """Names of the nodes that train."""
        return trained_nodes(self.graph, self.run.trains)

    @cached_property
    def student(self) -> LanguageModel:
        """The student: from the run's own checkpoint on resuming, else from the parent's, else from the teacher.

        Weights outside of ``trained`` may share the teacher's memory: give a module a new parameter instead of writing
        into one.
        """
        return self._assembled(self.resume_from or self.kept.get("path") or self.parent)

    def start(self) -> LanguageModel:
        """The student as it was before the run's first step: a model of its own where the run goes on."""
        if self.resume_from is None and not self.kept:
            return self.student
        self.check_start()
        return self._assembled(self.parent)

    def check_start(self) -> None:
        """Raise :class:`InputError` where what the run started from cannot be had any more."""
        if self.resume_from is not None and self.lost_parent is not None:
            raise self.lost_parent

    def _assembled(self, path: Path | None) -> LanguageModel:
        teacher = self.teacher if self.shared.source is not None else None
        return assemble(
            self.graph,
            teacher=teacher,
            tensors=None if path is None else load_tensors(path),
            trained=self.trained,
            device=self.device,
            dtype=self.held,
            seed=self.seed,
        )

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Parameters that train, by graph name."""
        return [(f"{ROOT}.{name}", p) for name, p in self.student.named_parameters() if p.requires_grad]

    @property
    def seconds(self) -> float:
        """Time that the run has taken, in this call and those that it goes on from."""
        return time.perf_counter() - self._began

    # ------------------------------------------------------------------------------------------------ what it does

    def autocast(self) -> AbstractContextManager[Any]:
        """Computation in the run's number type; weights that train stay in float32."""
        return autocast(self.device, self.dtype_name)

    def save(
        self,
        step: int,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        state: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Mapping[str, Tensor]] | None = None,
        replace: bool = False,
    ) -> Path:
        """Publish a checkpoint of the student behind ``step`` steps, with what resuming needs; :attr:`keeps` are kept.

        ``state`` are scalars of the mode's own, which :meth:`restore` gives back; ``tensors`` are more files of it, by
        name.  One of this step that the run has written stays, without ``replace``.  The last one is the run's result.
        """
        self.step, path = step, self.directory.checkpoint(step)
        if self._superseded is None:  # the first of a run that begins: what an earlier attempt left gives way to it
            self._superseded = self.directory.checkpoints()
        if path.exists() and path not in self._superseded and not replace:
            self._drop_others()  # where a process died before it did
            return path
        own = self.directory.begun()
        ends = ((name, torch.stack(parameter.detach().aminmax())) for name, parameter in self.trainable())
        broken = [name for name, both in ends if not bool(both.isfinite().all())]
        if broken:
            newest = self.directory.checkpoints()
            raise NumericalStop(
                f"step {step}: {len(broken)} weights hold NaN or infinity, {broken[0]} first, and are not saved",
                hint=f"the last good state is {newest[-1]}: lower train.lr and go on with --resume" if newest else None,
            )
        kept = {"step": step, "run": own.identity, "tokenizer": self.shared.identity, "stop_reason": self.stop_reason}
        kept |= state or {}
        superseded, seconds = [other for other in self._superseded if other != path], self.seconds

        def saved() -> None:
            self.directory.drop_checkpoints(superseded)
            self._superseded = []
            self._drop_others()
            self.directory.update(step=step, seconds=seconds)
            shutil.rmtree(self._midway, ignore_errors=True)
            self.limit.worked()
            self.hooks.checkpoint_saved(context=self, path=path)

        publish = None if self.publish is None else partial(self.publish, saved)
        save_checkpoint(path, model=self.student, optimizer=optimizer, state=kept, tensors=tensors, publish=publish)
        if publish is None:
            saved()
        return path

    def _drop_others(self) -> None:
        checkpoints = self.directory.checkpoints()
        self.directory.drop_checkpoints(sorted({*checkpoints} - {*self.keeps(checkpoints)}))

    def keep(self, done: int, note: Mapping[str, Any]) -> None:
        """Keep the student midway, ``done`` units into work that makes no checkpoints, for a later call (:attr:`kept`).

        It is removed with the next checkpoint.
        """
        shutil.rmtree(self._midway, ignore_errors=True)
        state = {**note, "of": self._begun_as}
        save_checkpoint(self._midway / f"step_{done:06d}", model=self.student, optimizer=None, state=state)

    @cached_property
    def kept(self) -> dict[str, Any]:
        """What an earlier call has noted with :meth:`keep`, and the units that were done as ``step``, if there is any.

        The student is as it was then.
        """
        states = ((path, read_state(path)) for path in self._midway.glob("step_*"))
        return next(({**state, "path": path} for path, state in states if state["of"] == self._begun_as), {})

    @property
    def _midway(self) -> Path:
        return self.directory.path / "midway"

    @property
    def _begun_as(self) -> dict[str, Any]:
        """What shapes a run's work from its beginning on."""
        begun = self.directory.begun()
        return {"document": begun.document, "inputs": begun.inputs, "device": self.device.type}

    def took(self, seconds: float) -> None:
        """Count the time of the calls that this one goes on from."""
        self._began -= seconds

    def resume_at(self, checkpoint: Path) -> None:
        """Go on from a checkpoint of the run's own; later ones stay until the next is saved."""
        self.resume_from = checkpoint
        self.step = step_of(checkpoint) or 0
        checkpoints = self.directory.checkpoints()
        self._superseded = checkpoints[checkpoints.index(checkpoint) + 1 :]

    def restore(self, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
        """Put optimizer and random generators back where the run's last checkpoint left them, and give its scalars.

        Empty where the run begins; ``step`` is how many steps were done.
        """
        if self.resume_from is None:
            return {}
        if optimizer is not None:
            restore_optimizer(self.resume_from, self.student, optimizer)
        load_random(self.resume_from)
        state = read_state(self.resume_from)
        self.step = int(state["step"])
        if state["stop_reason"] is not None:  # stopped for good, and ended before its result was published
            self.request_stop(state["stop_reason"])
        self.directory.rewind_metrics(self.step)
        return state

    def should_stop(self) -> bool:
        """Whether to end behind the step that was just taken: something asked for it, or the time limit has passed."""
        self.limit.worked()
        self.pause_reason = self.pause_reason or self.limit.reason  # which leaves a run to be resumed
        return self.stop_reason is not None or self.pause_reason is not None

    def pause_if_due(self) -> None:
        """Raise :class:`~caramba_terminal.limit.Paused` between two units of work where the call is to end."""
        self.pause_reason = self.pause_reason or self.limit.reason
        if self.pause_reason is not None:
            raise Paused(self.pause_reason)

    def request_stop(self, reason: str) -> None:
        """End the run for good behind the current step: its result is what it has learned so far (early stopping)."""
        self.stop_reason = self.stop_reason or reason


def evaluator_classes() -> list[type[Evaluator]]:
    """What measures before and after runs."""
    return [registry().load(entry) for entry in registry().entries("evaluator")]


def check_tokens(tokens: Tokens, graph: Graph, tokenizer: Tokenizer | None) -> Tokens:
    """The same tokens, once they are known to fit the model's vocabulary and tokenizer."""
    if tokenizer is not None:
        _require_same_tokenizer(tokens.origin, tokens.tokenizer, "the teacher's tokenizer", tokenizer.identity)
    return tokens.checked(graph.vocab_size)


def _require_same_tokenizer(origin: str, found: str | None, owner: str, expected: str | None) -> None:
    """Raise where both identities are known and differ; ``owner`` says whose tokenizer is expected."""
    if found is not None and expected is not None and found != expected:
        raise InputError(
            f"{origin} was made with another tokenizer (identity {found[:12]})",
            expected=f"{owner} (identity {expected[:12]})",
            hint="token ids mean other texts there: make token arrays again with caramba data prepare",
        )
