"""Checks of a training strategy on a small real run."""

from __future__ import annotations

from pathlib import Path

import torch
from caramba_plugins_standard.training import StepResult, Strategy, StrategyRunner
from caramba_plugins_standard.training.batch import Batch
from torch import Tensor

from caramba_core.run.context import RunContext
from caramba_plugins_testing.case import CheckFailed, about, require
from caramba_plugins_testing.runs import small_run

__all__ = ["check_strategy"]


def check_strategy(strategy: Strategy, folder: Path, *, trains: tuple[str, ...] = ("*",), learns: bool = True) -> None:
    """Run a strategy for some steps and hold it to its contract; raises :class:`CheckFailed`.

    A step gives a finite, detached loss and metrics, adds its gradients to those that are there, reaches every
    parameter that trains and no other, and leaves moving them to the loop.  ``learns``: forty steps of Adam on one
    batch lower the loss.
    """
    context = small_run(folder, strategy=strategy, trains=trains)
    with about(type(strategy).__name__):
        runner = strategy.start(context)
        runner.prepare()
        batch = Batch(tokens=torch.from_numpy(context.shared.tokens("train").ids[:34].reshape(2, 17)))
        before = {key: parameter.detach().clone() for key, parameter in context.student.named_parameters()}
        _check_result(_step(runner, batch))
        _check_gradients(context)
        for key, parameter in context.student.named_parameters():
            still = torch.equal(parameter, before[key])
            require(still, f"a step moves {key} itself; that is the optimizer's business")
        once = [_gradient(parameter).clone() for _, parameter in context.trainable()]
        _step(runner, batch)
        for (key, parameter), gradient in zip(context.trainable(), once, strict=True):
            adds = (_gradient(parameter) - 2 * gradient).norm() <= 1e-3 * gradient.norm()
            require(adds, f"a second step does not add to the gradient of {key}; accumulation needs that")
        if learns:
            _check_learning(context, runner, batch)


def _step(runner: StrategyRunner, batch: Batch) -> StepResult:
    torch.manual_seed(5)
    return runner.step(batch)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _check_result(result: StepResult) -> None:
    for what, value in {"loss": result.loss, **result.metrics}.items():
        require(value.numel() == 1 and not value.requires_grad, f"{what} is not a detached single number")
        require(value.isfinite(), f"{what} is {value.item()}")


def _check_gradients(context: RunContext) -> None:
    trained = {key.removeprefix("model.") for key, _ in context.trainable()}
    require(trained, "nothing trains")
    for key, parameter in context.student.named_parameters():
        gradient = parameter.grad
        if key not in trained:
            require(gradient is None, f"{key} is frozen, and a step gives it a gradient")
        elif gradient is None:
            raise CheckFailed(f"{key} trains, and a step gives it no gradient")
        else:
            sound = gradient.isfinite().all() and gradient.any()
            require(sound, f"{key} trains, and a step gives it a gradient that is zero or not finite")


def _check_learning(context: RunContext, runner: StrategyRunner, batch: Batch) -> None:
    optimizer = torch.optim.Adam([parameter for _, parameter in context.trainable()], lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(_step(runner, batch).loss.item())
        optimizer.step()
    first, last = losses[0], losses[-1]
    require(last < first, f"forty steps on one batch take the loss from {first:.4f} to {last:.4f}")
