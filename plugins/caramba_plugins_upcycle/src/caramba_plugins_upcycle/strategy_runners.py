"""Distillation of attentions, block by block, and of logits, in chunks that never hold more than some rows of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from caramba_plugins_standard.training import StepResult, TrainingContext
from caramba_plugins_standard.training.batch import Batch
from caramba_plugins_standard.training.chunked_head import backward_behind_head, cross_entropy_with_gradient, log_total
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from caramba_core.errors import InputError
from caramba_core.nn.frame import Taps
from caramba_core.nn.language_model import LanguageModel
from caramba_plugins_upcycle.strategies import Blockwise, Global, HiddenStates, KeptLogits
from caramba_plugins_upcycle.teacher_logits import Largest, TeacherLogits, kept_divergence, largest, sequence_keys

__all__ = ["BlockwiseRunner", "GlobalRunner", "StateTaps", "divergence", "squared_error", "state_errors"]


def squared_error(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error and the target's energy, both summed over the batch; their ratio of 1 is that of zeros."""
    target = at_least_float32(target)
    return (at_least_float32(output) - target).square().sum(), target.square().sum()


class BlockwiseRunner:
    """One step: a teacher pass whose taps feed every site's own forward and backward.

    With teacher inputs a site's graph is freed before the next block runs.  With student inputs the teacher's outputs
    are kept and a pass of the student (without gradient) gives the inputs.
    """

    def __init__(self, config: Blockwise, context: TrainingContext) -> None:
        self.config = config
        self.context = context

    def prepare(self) -> None:
        """Tap the sites."""
        context = self.context
        self.config.check(context.student.graph, context.sites, context.trained)  # Python may start it unchecked
        self.names = [site.name for site in context.sites]
        self.student = context.student.train()
        self.teacher = context.teacher
        self.teacher.tap(self.names)
        if self.config.inputs == "student":
            self.student.tap(self.names)
        self.learners: list[nn.Module] = [
            self.student.get_submodule(name.removeprefix("model.")) for name in self.names
        ]
        self.error = squared_error
        if context.run.compiles:  # the learners run outside of the student's blocks, which are compiled whole
            self.error = torch.compile(squared_error)
            for learner in self.learners:
                learner.compile(fullgraph=True)

    def step(self, batch: Batch) -> StepResult:
        """Every token that is read counts, whether or not the next one is to be predicted."""
        errors: list[Tensor] = []
        plain = batch.frame(self.student)

        def learn(index: int, x: Tensor, target: Tensor) -> None:
            learner = self.learners[index]
            if not any(parameter.requires_grad for parameter in learner.parameters()):
                return
            with torch.enable_grad(), self.context.autocast():
                squared, energy = self.error(learner(x.detach(), plain), target)
                error = squared / batch.of_team(energy)
            error.backward()
            errors.append(error.detach())

        def pass_over(model: LanguageModel, tap: Callable[[int, Tensor, Tensor], None]) -> None:
            model.hidden(batch.inputs, batch.frame(model, taps=Taps(tap)))

        with torch.no_grad(), self.context.autocast():
            if self.config.inputs == "teacher":
                pass_over(self.teacher, learn)
            else:
                targets: list[Tensor] = []
                pass_over(self.teacher, lambda _, x, y: targets.append(y))
                pass_over(self.student, lambda i, x, y: learn(i, x, targets[i]))
        stacked = batch.of_team(torch.stack(errors))
        return StepResult(loss=stacked.mean(), metrics={"worst_block": stacked.max()})


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of each row, in nats times ``temperature**2``: ``[N, V], [N, V] -> [N]``.

    The factor keeps gradients of one size over temperatures (Hinton, Vinyals, Dean 2015, section 2).
    """
    log_p = F.log_softmax(at_least_float32(teacher) / temperature, dim=-1)
    log_q = F.log_softmax(at_least_float32(student) / temperature, dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1) * temperature**2


def divergence_with_gradient(
    student: Tensor, teacher: Tensor, temperature: float, learned: Tensor | None, reverse: float = 0.0
) -> tuple[Tensor, Tensor]:
    """:func:`divergence` summed over the rows that are ``learned``, bool ``[N]``, and its gradient by the student's.

    With ``reverse``, the sums of KL(teacher || student) and KL(student || teacher), ``[2]``, and the gradient of the
    sum of both, the latter with this weight and the former with what is left to 1.
    """
    log_p, log_q = (at_least_float32(each) / temperature for each in (teacher, student))
    log_p, log_q = log_p - log_total(log_p), log_q - log_total(log_q)
    p, q, ratio = log_p.exp(), log_q.exp(), log_p - log_q
    rows = (p * ratio).sum(-1, keepdim=True) * temperature**2
    gradient = (q - p) * temperature
    if reverse:
        back = -(q * ratio).sum(-1, keepdim=True)
        gradient = (1 - reverse) * gradient - (reverse * temperature) * q * (ratio + back)
        rows = torch.cat([rows, back * temperature**2], dim=-1)
    if learned is not None:
        rows, gradient = (each * learned.unsqueeze(-1) for each in (rows, gradient))
    return rows.sum(0) if reverse else rows.sum(), gradient.to(student.dtype)


class StateTaps(Taps):
    """Hands the state behind each block to ``keep(number, state)``, as soon as it is there."""

    __slots__ = ("_keep", "_number")

    def __init__(self, keep: Callable[[int, Tensor], None]) -> None:
        super().__init__(lambda index, x, y: None)
        self._keep = keep
        self._number = 0

    def flush(self, state: Tensor | None = None) -> None:
        """What flows between two blocks, if that is where the pass is."""
        if state is not None:
            self._keep(self._number, state)
            self._number += 1


def state_errors(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of each state over the teacher's square, float32: ``[B, T, D], [B, T, D] -> [B, T]``.

    States of the first token are hundreds of times as large as others: a sum over tokens would be of that one alone.
    """
    teacher = at_least_float32(teacher)
    return (at_least_float32(student) - teacher).square().sum(-1) / teacher.square().sum(-1).clamp(min=1e-30)


def _beside(x: Tensor, loss: Tensor) -> Tensor:
    """``x`` as it is, whose backward pass is that of a loss, too."""
    same: Tensor = _Beside.apply(x, loss)  # type: ignore[no-untyped-call]
    return same


class _Beside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.one = torch.ones_like(loss)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, ctx.one


class GlobalRunner:
    """One step: both models over the same tokens, then loss and gradient a chunk of rows at a time."""

    def __init__(self, config: Global, context: TrainingContext) -> None:
        self.config = config
        self.context = context

    def prepare(self) -> None:
        """Student and teacher stand ready; the context froze what does not train."""
        self.student = self.context.student.train()
        self.teacher = self.context.teacher
        # One fused pass over the vocabulary instead of ten: worth it where memory bandwidth is the limit.
        compiles = self.context.run.compiles
        self.divergence = torch.compile(divergence_with_gradient) if compiles else divergence_with_gradient
        self.cross_entropy = cross_entropy_with_gradient(compiles=compiles)
        self.state_errors = torch.compile(state_errors) if compiles else state_errors
        if self.config.hidden is not None:
            self.teacher.tap(())  # by a run before
            self.student.tap(())
        self.kept_divergence = torch.compile(kept_divergence) if compiles else kept_divergence
        self.kept: TeacherLogits | None = None

    def step(self, batch: Batch) -> StepResult:
        """Means over the tokens that are to be predicted."""
        config, context = self.config, self.context
        targets = batch.targets.flatten()
        learned = None if batch.learned is None else batch.learned.flatten()
        sums: dict[str, list[Tensor]] = {}
        kept: Largest | None = None
        if config.keep_logits is not None:
            kept, hidden = self._kept(batch, config.keep_logits), self._hidden(self.student, batch)
        elif config.hidden is None:
            with torch.no_grad():
                wanted = self._hidden(self.teacher, batch)
            hidden = self._hidden(self.student, batch)
        else:
            wanted, hidden, error = self._with_states(batch, config.hidden)

        def loss(logits: Tensor, where: slice) -> tuple[Tensor, Tensor]:
            counted = None if learned is None else learned[where]
            if kept is not None:
                there = Largest(*(each[where] for each in kept))
                apart, gradient = self._of_kept(logits, there, counted)
            else:
                with context.autocast(), torch.no_grad():
                    theirs = self.teacher.logits(wanted[where])
                apart, gradient = self.divergence(logits, theirs, config.temperature, counted, config.reverse)
            if config.reverse:
                kl, reverse_kl = apart.unbind()
                sums.setdefault("reverse_kl", []).append(reverse_kl)
                total = (1 - config.reverse) * kl + config.reverse * reverse_kl
            else:
                total = kl = apart
            sums.setdefault("kl", []).append(kl)
            if not config.cross_entropy:
                return total, gradient
            ce, to_logits = self.cross_entropy(logits, targets[where])
            sums.setdefault("cross_entropy", []).append(ce)
            return total + config.cross_entropy * ce, gradient.add_(to_logits, alpha=config.cross_entropy)

        rows, autocast = config.logit_rows, context.autocast
        total = backward_behind_head(self.student, hidden, loss, rows=rows, mean=batch.mean, autocast=autocast)
        metrics = {name: batch.mean(torch.stack(values).sum()) for name, values in sums.items()}
        if config.hidden is not None:
            total, metrics["hidden"] = total + config.hidden.weight * error, error
        return StepResult(loss=total, metrics=metrics)

    def _of_kept(self, logits: Tensor, kept: Largest, learned: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same as :func:`divergence_with_gradient` of what is kept."""
        reverse, temperature = self.config.reverse, self.config.temperature

        def total(rows: Tensor) -> Tensor:
            return (rows if learned is None else rows * learned).sum()

        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            sums = mixed = total(self.kept_divergence(leaf, kept, temperature))
            if reverse:
                back = total(self.kept_divergence(leaf, kept, temperature, reverse=True))
                sums, mixed = torch.stack([sums, back]), (1 - reverse) * sums + reverse * back
            (gradient,) = torch.autograd.grad(mixed, leaf)
        return sums.detach(), gradient

    def _hidden(self, model: LanguageModel, batch: Batch) -> Tensor:
        """What a model's head reads of a batch: ``[N, D]``."""
        with self.context.autocast():
            return model.hidden(batch.inputs, batch.frame(model)).flatten(0, 1)

    @torch.no_grad()
    def _kept(self, batch: Batch, config: KeptLogits) -> Largest:
        """The teacher's largest log-probabilities, as they stand in the file; what is not there is put there."""
        context = self.context
        if self.kept is None:
            self.kept = self._opened(config, batch)
        keys = sequence_keys(batch.inputs, batch.begins)
        found = self.kept.read(keys, batch.tokens.device)
        if found is not None:
            return found
        wanted, rows = self._hidden(self.teacher, batch), self.config.logit_rows
        parts = []
        for first in range(0, len(wanted), rows):
            with context.autocast():
                logits = self.teacher.logits(wanted[first : first + rows])
            parts.append(largest(logits, config.top, self.config.temperature))
        found = Largest(*map(torch.cat, zip(*parts, strict=True)))
        self.kept.write(keys, found)
        return self.kept.read(keys, batch.tokens.device) or found

    def _opened(self, config: KeptLogits, batch: Batch) -> TeacherLogits:
        """The file of this run, for sequences as long as a batch's."""
        context, vocabulary = self.context, self.teacher.graph.vocab_size
        hashes = context.shared.inputs(context.run)
        identity: dict[str, Any] = {name: digest for name, digest in hashes.items() if name.startswith("teacher")}
        identity |= {"temperature": self.config.temperature, "computation": context.run.computation[1]}
        folder = context.directory.path / "teacher_logits"
        return TeacherLogits(folder, config, tokens=batch.inputs.shape[1], vocabulary=vocabulary, identity=identity)

    def _with_states(self, batch: Batch, config: HiddenStates) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states behind the last block of teacher and student, ``[N, D]``, and how far those before are apart.

        The backward pass of the student's is that of the distance, too.
        """
        theirs: dict[int, Tensor] = {}
        errors: list[Tensor] = []

        def keep(number: int, state: Tensor) -> None:
            if config.blocks is None or number in config.blocks:
                theirs[number] = state

        def compare(number: int, state: Tensor) -> None:
            if number in theirs:
                # which keeps both states alone for the backward pass
                rows = checkpoint(
                    self.state_errors, state, theirs.pop(number), use_reentrant=False, preserve_rng_state=False
                )
                assert isinstance(rows, Tensor)
                rows = rows if batch.learned is None else rows * batch.learned
                errors.append(batch.mean(rows.sum()))

        with self.context.autocast():
            with torch.no_grad():
                wanted = self.teacher.hidden(batch.inputs, batch.frame(self.teacher, taps=StateTaps(keep)))
            asked = len(theirs) if config.blocks is None else len(config.blocks)
            hidden = self.student.hidden(batch.inputs, batch.frame(self.student, taps=StateTaps(compare)))
        if theirs or not errors or len(errors) != asked:
            raise InputError(
                f"hidden states of {asked} blocks are asked for, and {len(errors)} are there in student and teacher",
                expected="blocks that both have: repetitions of a topology, counted from 0",
                hint="correct train.strategy.hidden.blocks, or leave hidden out",
            )
        error = torch.stack(errors).mean()
        return wanted.flatten(0, 1), _beside(hidden, config.weight * error).flatten(0, 1), error.detach()


def at_least_float32(x: Tensor) -> Tensor:
    """Values of a narrower type in float32, others as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
