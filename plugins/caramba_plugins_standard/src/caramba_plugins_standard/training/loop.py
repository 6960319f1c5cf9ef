"""The training loop: batches in, steps out; it knows no loss."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs
import torch
from caramba_terminal.limit import Paused
from caramba_terminal.numbers import format_count
from caramba_terminal.reporter import Bar
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from caramba_core.errors import NumericalStop
from caramba_core.modes import Results
from caramba_core.run.context import RunContext
from caramba_core.run.directory import step_of
from caramba_plugins_standard.measuring import measure_step, measured_in
from caramba_plugins_standard.modes import Train
from caramba_plugins_standard.parallel.division import divided
from caramba_plugins_standard.parallel.team import Team, together
from caramba_plugins_standard.training import StepResult, StrategyRunner
from caramba_plugins_standard.training.averaging import WeightAverage
from caramba_plugins_standard.training.background import BackgroundCheckpoints
from caramba_plugins_standard.training.batch import batches_of
from caramba_plugins_standard.training.compiling import compile_blocks, join_frozen, uncompile
from caramba_plugins_standard.training.cuda_graph import CapturedStep, launches_dominate, why_not_recorded
from caramba_plugins_standard.training.determinism import deterministic
from caramba_plugins_standard.training.documents import require_documents
from caramba_plugins_standard.training.float8 import use_float8
from caramba_plugins_standard.training.kernels import attention_kernels
from caramba_plugins_standard.training.lora import Adapters, holds_adapters_alone
from caramba_plugins_standard.training.memory import is_out_of_memory, out_of_memory
from caramba_plugins_standard.training.planning import what_trains
from caramba_plugins_standard.training.profiling import Profiler
from caramba_plugins_standard.training.rates import node_factors, parameter_groups
from caramba_plugins_standard.training.recomputing import recompute_activations
from caramba_plugins_standard.training.retention import Retention
from caramba_plugins_standard.training.rounding import rounding_cache
from caramba_plugins_standard.training.skipping import Skipping
from caramba_plugins_standard.training.watching import Watch, progress_notes
from caramba_plugins_standard.training.windows import windows_of

__all__ = ["TrainRunner"]


@attrs.frozen
class _Numbers:
    """The numbers of one step, on their way from the device: read one step late, so that nothing waits for them."""

    step: int
    lr: float
    names: tuple[str, ...]
    values: Tensor
    ready: torch.cuda.Event | None
    left_out: str | None = None
    """Why the step did not move the weights, if it did not."""

    @classmethod
    def of(cls, step: int, lr: float, result: StepResult, norm: Tensor) -> _Numbers:
        metrics = {"loss": result.loss, "gradient_norm": norm, **result.metrics}
        stacked = torch.stack([value.detach().float().reshape(()) for value in metrics.values()])
        if stacked.device.type != "cuda":
            return cls(step, lr, tuple(metrics), stacked, None)
        values = torch.empty(stacked.shape, pin_memory=True).copy_(stacked, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        return cls(step, lr, tuple(metrics), values, ready)

    def read(self) -> dict[str, float]:
        if self.ready is not None:
            self.ready.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))


class TrainRunner:
    """Mode ``train``: a strategy for a number of steps, with clipping, a schedule, checkpoints and hooks.

    Artifacts: checkpoints, and a line of metrics for each step.  Raises :class:`NumericalStop` when a loss or gradient
    is not finite; the newest checkpoint is the last good state.
    """

    def __init__(self, run: Train, context: RunContext) -> None:
        self.context = context
        self.id = run.id
        self.settings = run.train.complete()
        self.steps = run.steps
        self.step = 0
        self.seconds = 0.0
        self.tokens_a_step = self.settings.batch_size * self.settings.accumulate * self.settings.context
        self.windows = windows_of(context, self.settings.context)
        if self.windows.marked:
            require_documents(context.graph)
        self.rounding = rounding_cache(context.graph, self.settings.cache)
        self.team = Team()
        self._pending: _Numbers | None = None
        self._captured: CapturedStep | None = None
        self._tries, self._records = True, self.settings.cuda_graph is True

    def run(self) -> Results:
        """Train to the last step, or to where something asked to stop."""
        context = self.context
        exact = deterministic(self.id) if self.settings.deterministic else nullcontext()
        with together(context) as self.team, exact:
            try:
                self._prepare()
                self._train()
                self.division.end()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise out_of_memory(error, context, self.settings, self.step + 1) from error
            finally:
                gc.unfreeze()
        if (self.step < self.steps and context.stop_reason is None) or self._owes_evaluation():
            return Results(done=False)
        self._take_result()
        entries: dict[str, Any] = {
            "tokens": self.step * self.tokens_a_step,
            "steps": self.step,
            "train_seconds": round(self.seconds, 3),
            "trained_parameters": self.trained,
            "parameters": self.total,
        }
        if self.skipping.total:
            entries["steps_left_out"] = self.skipping.total
        if self.step < self.steps:
            context.reporter.line(f"{self.id} ended at step {self.step} of {self.steps}: {context.stop_reason}")
            entries["stop_reason"] = context.stop_reason
        if context.step < self.step:
            context.reporter.line(f"the result of {self.id} is its best checkpoint, of step {context.step:,}")
            entries["result_step"] = context.step
        return Results(entries=entries)

    def _take_result(self) -> None:
        """Make the student what was saved as the run's result: the best checkpoint, where it is not the last one."""
        context = self.context
        checkpoints = context.directory.checkpoints()
        best = self.retention.result(checkpoints) if self.team.is_first else None
        if best is not None:
            context.directory.drop_checkpoints(checkpoints[checkpoints.index(best) + 1 :])
            context.step, context.resume_from = step_of(best) or 0, best
            context.__dict__.pop("student", None)  # is made of that checkpoint when it is asked for
            return
        if self.settings.parallel.shards > 1:
            return  # it is made of the last checkpoint
        if self.average is not None:
            self.average.exchange()
        if self.adapters is not None:
            self.adapters.merge()

    def _prepare(self) -> None:
        """Build strategy and optimizer; on resuming, put everything back to where it was."""
        context, settings = self.context, self.settings
        self.adapters = None if settings.lora is None else Adapters(context, settings.lora)
        self.runner: StrategyRunner = settings.strategy.start(context)
        self.runner.prepare()
        self.division = divided(
            context,
            self.team,
            settings.parallel,
            uses_teacher=settings.strategy.needs_teacher,
            whole_model=settings.strategy.whole_model,
            adapters=self.adapters,
        )
        self.parameters: list[nn.Parameter] = [parameter for _, parameter in context.trainable()]
        self.trained = sum(parameter.numel() for parameter in self.parameters)
        self.total = sum(parameter.numel() for parameter in context.student.parameters())
        self.total -= 0 if self.adapters is None else self.adapters.count
        assert settings.optimizer is not None
        factors = node_factors(context.graph, settings.lr_factors, frozenset(context.graph.nodes()))
        groups = parameter_groups(context.graph, context.trainable(), factors)
        self.division.begin(self.parameters, [p for group in groups if "tables" in group for p in group["params"]])
        self.optimizer = settings.optimizer.create(groups, settings.lr)
        context.hooks.model_built(context=context, model=context.student)
        torch.manual_seed(context.seed)
        state = context.restore(self.optimizer)
        self.division.restored(self.optimizer)
        self.step = context.step
        self.seconds = float(state.get("seconds", 0.0))
        self.skipping = Skipping(settings, state)
        self.average = None
        if settings.ema is not None:
            self.average = WeightAverage(context.trainable(), settings.ema, state, context.resume_from)
        self.watch = Watch(context, self.tokens_a_step)
        self.profiler = Profiler(settings.profile if self.team.is_first else None, context)
        compares = settings.keep.best is not None or settings.patience is not None
        lines, measured = (context.directory.metrics(), measured_in(context)) if compares else ([], None)
        self.retention = Retention(settings.keep, lines, measured, settings.patience)
        context.keeps = self.retention.kept
        wanted = settings.checkpoint_async
        self.saves_in_background = context.device.type == "cuda" if wanted == "auto" else wanted
        self.background = BackgroundCheckpoints(
            context.student, context.reporter.line, copies=not self.division.saves_copies
        )
        context.reporter.stage(
            f"train {context.name}",
            f"{', '.join(what_trains(settings))}: {format_count(self.trained)} of {format_count(self.total)} parameters"
            f" train, {self.steps:,} steps of {self.tokens_a_step:,} tokens on {context.device.type}"
            + (", compiled" if context.run.compiles else "")
            + (f", in {self.team.size} processes" if self.team.size > 1 else ""),
        )
        if settings.float8 and (left := use_float8(context.student)):
            context.reporter.line(
                f"not in 8 bits, as sizes are no multiples of 16: {len(left)} matrices, {left[0]} first"
            )
        recompute_activations(context.student, settings.activation_checkpointing)
        if context.run.compiles:
            torch.compiler.reset()  # graphs of an earlier run of this process count against dynamo's limit
            if settings.strategy.needs_teacher and not settings.parallel.shard:
                join_frozen(context.teacher, context.student)
            own = [name for model in self._models() for name in compile_blocks(model)]
            if own:
                context.reporter.line(f"compiled with symbols for sizes: {len(own)} layers, {own[0]} first")

    def _models(self) -> list[nn.Module]:
        """The models that a step runs."""
        return [self.context.student, *([self.context.teacher] if self.settings.strategy.needs_teacher else [])]

    def _train(self) -> None:
        """Train until the last step, or until something asks to stop; either way a checkpoint of the end exists."""
        self._began, self._saved = time.perf_counter() - self.seconds, self.context.reporter.clock()
        stops = self.context.stop_reason is not None
        done, all_tokens = self.step * self.tokens_a_step, self.steps * self.tokens_a_step
        with (
            self.context.limit.signals.deferred(),
            self.background,
            self.context.reporter.bar(self.context.name, all_tokens, done=done) as bar,
        ):
            if any(self.team.agree(self.team.is_first and self._owes_evaluation())):
                self._evaluate()
                stops, _ = self._agreed()
                if self.adapters is not None:  # by now it is known whether this step is one to keep
                    self._save(in_background=False)
            while self.step < self.steps and not stops:
                self._one_step(bar)
                if self._measures():
                    self._evaluate()
                stops, is_due = self._agreed()
                self.background.settle()
                if self.step < self.steps and not stops and is_due:
                    self._save(in_background=self.saves_in_background)
            self._settle(bar)
            self._save(in_background=False)

    def _agreed(self) -> tuple[bool, bool]:
        """Whether to stop, and to save, behind this step: as the first process says, or a signal in any of them."""
        context = self.context
        stops = context.should_stop()
        if self.team.size == 1:
            return stops, self._is_due()
        first = self.team.is_first
        signal, stopping, is_due = self.team.heard(context.limit.signals, first and stops, first and self._is_due())
        if signal:
            context.should_stop()  # says that it was this
        return bool(signal or stopping), bool(is_due)

    def _is_due(self) -> bool:
        """Whether to save between the first step and the last: to keep it, by steps, or by the time since the last."""
        if self.retention.wants(self.step):
            return True
        every, minutes = self.settings.checkpoint_every, self.settings.checkpoint_minutes
        if every is not None:
            return self.step % every == 0
        return minutes is not None and self.context.reporter.clock() - self._saved >= 60 * minutes

    def _save(self, *, in_background: bool) -> None:
        """Publish a checkpoint of the current step."""
        self._settle(None)
        self.background.finish()
        self.context.publish = self.background.publish if in_background else None
        self.seconds = time.perf_counter() - self._began
        tokens = self.step * self.tokens_a_step
        state = {"samples": tokens // self.settings.context, "tokens": tokens, "seconds": self.seconds}
        state |= self.skipping.state() | ({} if self.average is None else self.average.state())
        with self._averaged():
            tensors, replace = dict[str, Mapping[str, Tensor]](), False
            if self.adapters is not None:
                tensors, path = {"lora": self.adapters.tensors()}, self.context.directory.checkpoint(self.step)
                if any(self.team.agree(self.team.is_first and not self._is_whole())):
                    tensors["model"], note = self.adapters.alone(path)
                    state |= note
                else:  # a run may end where it was to go on from
                    replace = self.team.is_first and path.exists() and holds_adapters_alone(path)
            tensors |= {} if self.average is None else self.average.tensors()
            self.division.save(self.step, optimizer=self.optimizer, state=state, tensors=tensors, replace=replace)
        self._saved = self.context.reporter.clock()

    def _is_whole(self) -> bool:
        """Whether a checkpoint of this step holds the model beside its adapters: the last one, and those to keep."""
        return self.step == self.steps or self.context.stop_reason is not None or self.retention.wants(self.step)

    def _one_step(self, bar: Bar) -> None:
        settings, device = self.settings, self.context.device
        self.profiler.before(self.step + 1)
        assert settings.schedule is not None
        lr = settings.lr * settings.schedule.factor(self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        tokens = self._words()
        if device.type == "cuda":
            tokens = tokens.pin_memory()
        tokens = tokens.to(device, non_blocking=True)
        if self._tries:
            self._try(tokens)
        if self._records and self._captured is None:
            self._captured = CapturedStep(self._gradients, tokens, self.parameters)
        if self._captured is not None:
            result = self._captured(tokens)
        else:
            self.optimizer.zero_grad(set_to_none=True)
            result = self._gradients(tokens)
        norm = nn.utils.clip_grad_norm_(self.parameters, math.inf if settings.clip is None else settings.clip)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        numbers = _Numbers.of(self.step + 1, lr, result, norm)
        if self.skipping.judges:
            numbers = attrs.evolve(numbers, left_out=self.skipping.reason(numbers.read()))
        if numbers.left_out is not None:
            self.context.reporter.line(f"step {numbers.step} is left out: {numbers.left_out}")
        else:
            if device.type != "cuda" or self.skipping.judges:  # refuse the step before it spoils the weights
                self._check(numbers.read(), numbers.step)
            self.optimizer.step()
            if self.average is not None:
                self.average.update()
        self.step += 1
        self._settle(bar)
        if device.type == "cuda" and not gc.get_freeze_count():
            gc.collect()
            gc.freeze()  # models and graphs stay: each collection would go through all of them while the device waits
        self._pending = numbers
        bar.advance(self.tokens_a_step)
        self.profiler.behind(self.step, ends=self.step == self.steps)

    def _try(self, tokens: Tensor) -> None:
        """Settle what is ``auto``, by steps that change nothing.

        What cannot be compiled runs as it is; a step that takes as long to launch as to run becomes a CUDA graph.
        """
        self._tries, context, settings = False, self.context, self.settings
        cuda = context.device.type == "cuda"
        records, why_not = settings.cuda_graph == "auto" and cuda, why_not_recorded(settings)
        with torch.random.fork_rng([context.device] if cuda else []):
            if settings.compile == "auto" and context.run.compiles:
                try:
                    self._gradients(tokens)
                except torch._dynamo.exc.TorchDynamoException as error:
                    context.reporter.line(f"not compiled: {str(error).strip().splitlines()[0]}")
                    for model in self._models():
                        uncompile(model)
            if records and why_not is not None:
                context.reporter.line(f"not replayed as a CUDA graph: {why_not}")
            elif records:
                self._gradients(tokens)
                self._records = launches_dominate(lambda: self._gradients(tokens))
                if self._records:
                    context.reporter.line("launching a step takes as long as running it: replayed as a CUDA graph")
        self.optimizer.zero_grad(set_to_none=True)

    def _words(self) -> Tensor:
        """This process's sequences of the next step: int64 ``[accumulate, B, T + 1]``."""
        passes, size = self.settings.accumulate, self.settings.batch_size
        share = self.team.share(size)
        first = self.step * passes * size + share.start
        words = [self.windows.words(first + n * size, share.stop - share.start) for n in range(passes)]
        return torch.stack(words)

    def _gradients(self, words: Tensor) -> StepResult:
        """Forward and backward of int64 ``[accumulate, B, T + 1]``; gradients are means over all processes' words."""
        results: list[StepResult] = []
        # documents make masks, which cuDNN's kernels may not take
        with nullcontext() if self.windows.marked else attention_kernels(words.device):
            for batch in batches_of(words, marked=self.windows.marked, team=self.team, rounding=self.rounding):
                if len(results) == len(words) - 1:
                    self.division.last_pass()
                results.append(self.runner.step(batch))
        self.division.finish_pass()
        if len(results) > 1:
            torch._foreach_div_([p.grad for p in self.parameters if p.grad is not None], float(len(results)))
        return _mean(results, self.team)

    def _evaluate(self) -> None:
        """Measure the student on the held-out tokens in the middle of training."""
        self._settle(None)
        try:
            with self._averaged(), self.division.whole():
                if not self.team.is_first:
                    return
                results = {"perplexity": measure_step(self.context, self.step).perplexity}
        except Paused as paused:
            self.context.pause_reason = str(paused)  # and the rest of it is measured when the run goes on
            return
        measured_on = measured_in(self.context)  # lines of another are not comparable
        self.context.directory.append_metrics({"step": self.step, **results, "measured": measured_on})
        self.retention.measured(self.step, results["perplexity"])
        self.context.hooks.evaluated(context=self.context, step=self.step, results=results)
        if self.retention.stop_reason is not None:
            self.context.request_stop(self.retention.stop_reason)

    def _measures(self) -> bool:
        """Whether the student is measured behind this step; behind the last one where the best is to be known."""
        every = self.settings.evaluate_every
        if every is None or self.step == 0:
            return False
        return self.step % every == 0 or (self.settings.patience is not None and self.step == self.steps)

    def _averaged(self) -> AbstractContextManager[None]:
        """The student has the weights of the run's result meanwhile: their mean, where ``ema`` asks for it."""
        return nullcontext() if self.average is None else self.average.in_place()

    def _owes_evaluation(self) -> bool:
        """Whether the run stopped while the step that it goes on from was measured."""
        lines = self.context.directory.metrics() if self._measures() else []
        return self._measures() and not any(line["step"] == self.step and "perplexity" in line for line in lines)

    def _settle(self, bar: Bar | None) -> None:
        """Read, check and record the numbers of the previous step."""
        if self._pending is None:
            return
        numbers, self._pending = self._pending, None
        values, notes = numbers.read(), {}
        if numbers.left_out is None:
            self._check(values, numbers.step)
        else:
            notes = {"left_out": numbers.left_out}
            values = {name: value for name, value in values.items() if math.isfinite(value)}
        seconds = time.perf_counter() - self._began
        record = {"step": numbers.step, "tokens": numbers.step * self.tokens_a_step, "lr": numbers.lr, **values}
        self.context.directory.append_metrics({**record, **notes, "seconds": round(seconds, 3)})
        watched = self.watch.step()
        self.context.hooks.step_finished(context=self.context, step=numbers.step, metrics={**record, **watched})
        if bar is not None:
            bar.note(*progress_notes(values, numbers.lr, watched))

    def _check(self, values: Mapping[str, float], step: int) -> None:
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            self.background.finish()
            newest = self.context.directory.checkpoints()
            kept = f"the last good state is {newest[-1]}" if newest else "no checkpoint had been written yet"
            raise NumericalStop(
                f"step {step}: {', '.join(broken)} is not finite; {kept}",
                hint="lower train.lr, keep train.clip, or let a few such steps be skipped: train.on_nonfinite: skip 10",
            )


def _mean(results: list[StepResult], team: Team) -> StepResult:
    """The means of passes, and of processes."""
    if len(results) == team.size == 1:
        return results[0]
    names = list(results[0].metrics)
    values = [torch.stack([each.loss.float(), *(each.metrics[name].float() for name in names)]) for each in results]
    loss, *metrics = team.mean(torch.stack(values).mean(0)).unbind()
    return StepResult(loss=loss, metrics=dict(zip(names, metrics, strict=True)))
