"""The training loop: batches in, steps out; it knows no loss."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from caramba_core.errors import NumericalStop
from caramba_core.manifest.schema import Train
from caramba_core.run.batches import Windows
from caramba_core.run.checkpoint import load_random, read_state, restore_optimizer, save_checkpoint
from caramba_core.run.context import RunContext
from caramba_core.run.cuda_graph import CapturedStep
from caramba_core.run.device import autocast_dtype
from caramba_core.run.evaluation import measure
from caramba_core.run.reporter import Bar
from caramba_core.training import StepResult, StrategyRunner

__all__ = ["TrainingLoop"]


@attrs.frozen
class _Numbers:
    """The numbers of one step, on their way from the device: read one step late, so that nothing waits for them."""

    step: int
    lr: float
    names: tuple[str, ...]
    values: Tensor
    ready: torch.cuda.Event | None

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


class TrainingLoop:
    """Runs a strategy for a number of steps, with clipping, a schedule, checkpoints and hooks.

    Raises :class:`NumericalStop` when a loss or gradient is not finite; the newest checkpoint is the last good state.
    """

    def __init__(self, context: RunContext, settings: Train, steps: int) -> None:
        self.context = context
        self.settings = settings
        self.steps = steps
        self.step = 0
        self.seconds = 0.0
        self.tokens_a_step = settings.batch_size * settings.accumulate * settings.context
        self.windows = Windows(context.shared.tokens("train"), context=settings.context, seed=context.seed)
        self._pending: _Numbers | None = None
        self._captured: CapturedStep | None = None

    def prepare(self) -> None:
        """Build strategy and optimizer; on resuming, put everything back to where it was."""
        context = self.context
        self.model = context.student
        self.runner: StrategyRunner = self.settings.strategy.start(context)
        self.runner.prepare()
        self.named = context.trainable()
        self.parameters: list[nn.Parameter] = [parameter for _, parameter in self.named]
        assert self.settings.optimizer is not None
        self.optimizer = self.settings.optimizer.create([{"params": self.parameters}], self.settings.lr)
        context.hooks.model_built(context=context, model=self.model)
        torch.manual_seed(context.seed)
        if context.resume_from is not None:
            restore_optimizer(context.resume_from, self.model, self.optimizer)
            load_random(context.resume_from)
            state = read_state(context.resume_from)
            self.step = int(state["step"])
            self.seconds = float(state["seconds"])
            if state["stop_reason"] is not None:  # stopped for good, and ended before its result was published
                context.request_stop(state["stop_reason"])
            context.directory.rewind_metrics(self.step)

    def run(self, bar: Bar) -> None:
        """Train until the last step, or until something asks to stop; either way a checkpoint of the end exists."""
        every = self.settings.checkpoint_every
        self._began = time.perf_counter() - self.seconds
        while self.step < self.steps and self._goes_on():
            self._one_step(bar)
            if self.context.deadline is not None and time.monotonic() >= self.context.deadline:
                self.context.request_pause("the time limit of this call was reached")
            if self.settings.evaluate_every is not None and self.step % self.settings.evaluate_every == 0:
                self._evaluate()
            if every is not None and self.step % every == 0 and self.step < self.steps:
                self.save()
        self._settle(bar)
        self.save()

    def _goes_on(self) -> bool:
        return self.context.stop_reason is None and self.context.pause_reason is None

    def save(self) -> None:
        """Publish a checkpoint of the current step."""
        directory = self.context.directory
        self._settle(None)
        self.seconds = time.perf_counter() - self._began
        path = directory.checkpoint(self.step)
        if not path.exists():
            save_checkpoint(path, model=self.model, optimizer=self.optimizer, state=self._state())
            directory.drop_old_checkpoints()
            self.context.hooks.checkpoint_saved(context=self.context, path=path)
        state = directory.state()
        assert state is not None
        directory.set_state(attrs.evolve(state, step=self.step))

    def _state(self) -> dict[str, Any]:
        tokens = self.step * self.tokens_a_step
        return {
            "step": self.step,
            "samples": tokens // self.settings.context,
            "tokens": tokens,
            "seconds": self.seconds,
            "stop_reason": self.context.stop_reason,
            "tokenizer": self.context.shared.identity,
        }

    def _one_step(self, bar: Bar) -> None:
        settings, device = self.settings, self.context.device
        assert settings.schedule is not None
        lr = settings.lr * settings.schedule.factor(self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        size = settings.accumulate * settings.batch_size
        tokens = self.windows.batch(self.step * size, size).view(settings.accumulate, settings.batch_size, -1)
        if device.type == "cuda":
            tokens = tokens.pin_memory()
        tokens = tokens.to(device, non_blocking=True)
        if settings.cuda_graph and self._captured is None:
            self._captured = CapturedStep(self._gradients, tokens, self.parameters)
        if self._captured is not None:
            result = self._captured(tokens)
        else:
            self.optimizer.zero_grad(set_to_none=True)
            result = self._gradients(tokens)
        norm = nn.utils.clip_grad_norm_(self.parameters, math.inf if settings.clip is None else settings.clip)
        numbers = _Numbers.of(self.step + 1, lr, result, norm)
        if device.type != "cuda":  # nothing to wait for: refuse the step before it spoils the weights
            self._check(numbers.read(), numbers.step)
        self.optimizer.step()
        self.step += 1
        self._settle(bar)
        self._pending = numbers
        bar.advance(self.tokens_a_step)

    def _gradients(self, tokens: Tensor) -> StepResult:
        """Forward and backward of int64 ``[accumulate, B, T + 1]``; gradients are means over all of them."""
        results = [self.runner.step(part) for part in tokens]
        if len(results) > 1:
            torch._foreach_div_([p.grad for p in self.parameters if p.grad is not None], float(len(results)))
        return _mean(results)

    def _evaluate(self) -> None:
        """Measure the student on the held-out tokens in the middle of training."""
        context = self.context
        self._settle(None)
        self.model.eval()
        tokens, dtype = context.shared.tokens("heldout"), autocast_dtype(context.dtype_name)
        results = {"perplexity": measure(self.model, tokens, context.evaluation, autocast=dtype).perplexity}
        self.model.train()
        context.directory.append_metrics({"step": self.step, **results})
        context.hooks.evaluated(context=context, step=self.step, results=results)

    def _settle(self, bar: Bar | None) -> None:
        """Read, check and record the numbers of the previous step."""
        if self._pending is None:
            return
        numbers, self._pending = self._pending, None
        values = numbers.read()
        self._check(values, numbers.step)
        seconds = time.perf_counter() - self._began
        record = {"step": numbers.step, "tokens": numbers.step * self.tokens_a_step, "lr": numbers.lr, **values}
        self.context.directory.append_metrics({**record, "seconds": round(seconds, 3)})
        self.context.hooks.step_finished(context=self.context, step=numbers.step, metrics=record)
        if bar is not None:
            bar.note(f"loss {values['loss']:.4f}")

    def _check(self, values: Mapping[str, float], step: int) -> None:
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            newest = self.context.directory.checkpoints()
            kept = f"the last good state is {newest[-1]}" if newest else "no checkpoint had been written yet"
            raise NumericalStop(
                f"step {step}: {', '.join(broken)} is not finite; {kept}",
                hint="lower train.lr, keep train.clip, or train in bfloat16 or float32 instead of float16",
            )


def _mean(results: list[StepResult]) -> StepResult:
    if len(results) == 1:
        return results[0]
    return StepResult(
        loss=torch.stack([r.loss for r in results]).mean(),
        metrics={name: torch.stack([r.metrics[name] for r in results]).mean() for name in results[0].metrics},
    )
