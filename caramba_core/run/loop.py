"""The training loop: batches in, steps out; it knows no loss."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import attrs
import torch
from torch import Tensor, nn

from caramba_core.errors import NumericalStop
from caramba_core.run.context import RunContext
from caramba_core.run.cuda_graph import CapturedStep
from caramba_core.run.reporter import Bar
from caramba_core.training import StepResult, StrategyRunner, Training

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
        ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
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

    def __init__(self, context: RunContext, settings: Training, steps: int) -> None:
        self.context = context
        self.settings = settings
        self.steps = steps
        self.step = 0
        self.seconds = 0.0
        self.tokens_a_step = settings.batch_size * settings.accumulate * settings.context
        self.windows = context.windows(settings.context)
        self._pending: _Numbers | None = None
        self._captured: CapturedStep | None = None

    def prepare(self) -> None:
        """Build strategy and optimizer; on resuming, put everything back to where it was."""
        context = self.context
        self.model = context.student
        self.runner: StrategyRunner = self.settings.strategy.start(context)
        self.runner.prepare()
        self.parameters: list[nn.Parameter] = [parameter for _, parameter in context.trainable()]
        assert self.settings.optimizer is not None
        self.optimizer = self.settings.optimizer.create([{"params": self.parameters}], self.settings.lr)
        context.hooks.model_built(context=context, model=self.model)
        torch.manual_seed(context.seed)
        state = context.restore(self.optimizer)
        self.step = context.step
        self.seconds = float(state.get("seconds", 0.0))

    def run(self, bar: Bar) -> None:
        """Train until the last step, or until something asks to stop; either way a checkpoint of the end exists."""
        every, measured = self.settings.checkpoint_every, self.settings.evaluate_every
        self._began = time.perf_counter() - self.seconds
        stops = self.context.stop_reason is not None
        while self.step < self.steps and not stops:
            self._one_step(bar)
            if measured is not None and self.step % measured == 0:
                self._evaluate()
            stops = self.context.should_stop()
            if every is not None and self.step % every == 0 and self.step < self.steps:
                self.save()
        self._settle(bar)
        self.save()

    def save(self) -> None:
        """Publish a checkpoint of the current step."""
        self._settle(None)
        self.seconds = time.perf_counter() - self._began
        tokens = self.step * self.tokens_a_step
        state = {"samples": tokens // self.settings.context, "tokens": tokens, "seconds": self.seconds}
        self.context.save(self.step, optimizer=self.optimizer, state=state)

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
        self._settle(None)
        results = {"perplexity": self.context.measure().perplexity}
        self.context.directory.append_metrics({"step": self.step, **results})
        self.context.hooks.evaluated(context=self.context, step=self.step, results=results)

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
