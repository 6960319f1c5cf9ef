"""Checks of a training strategy on a small real run."""

from __future__ import annotations

from pathlib import Path

import torch
from caramba_plugins_standard.training import StepResult, Strategy, StrategyRunner
from torch import Tensor

from caramba_core.run.context import RunContext
from caramba_plugins_testing.case import CheckFailed
from caramba_plugins_testing.runs import small_run

__all__ = ["check_strategy"]


def check_strategy(strategy: Strategy, folder: Path, *, trains: tuple[str, ...] = ("*",), learns: bool = True) -> None:
    """Run a strategy for some steps and hold it to its contract; raises :class:`CheckFailed`.

    A step gives a finite, detached loss and metrics, adds its gradients to those that are there, reaches every
    parameter that trains and no other, and leaves moving them to the loop.  ``learns``: forty steps of Adam on one
    batch lower the loss.
    """
    name = type(strategy).__name__
    context = small_run(folder, strategy=strategy, trains=trains)
    runner = strategy.start(context)
    runner.prepare()
    tokens = torch.from_numpy(context.shared.tokens("train").ids[:34].reshape(2, 17))
    before = {key: parameter.detach().clone() for key, parameter in context.student.named_parameters()}
    first = _step(runner, tokens)
    _check_result(name, first)
    _check_gradients(name, context)
    for key, parameter in context.student.named_parameters():
        if not torch.equal(parameter, before[key]):
            raise CheckFailed(f"{name}: a step moves {key} itself; that is the optimizer's business")
    once = [_gradient(parameter).clone() for _, parameter in context.trainable()]
    _step(runner, tokens)
    for (key, parameter), gradient in zip(context.trainable(), once, strict=True):
        if (_gradient(parameter) - 2 * gradient).norm() > 1e-3 * gradient.norm():
            raise CheckFailed(f"{name}: a second step does not add to the gradient of {key}; accumulation needs that")
    if learns:
        _check_learning(name, context, runner, tokens)


def _step(runner: StrategyRunner, tokens: Tensor) -> StepResult:
    torch.manual_seed(5)
    return runner.step(tokens)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _check_result(name: str, result: StepResult) -> None:
    for what, value in {"loss": result.loss, **result.metrics}.items():
        if value.numel() != 1 or value.requires_grad:
            raise CheckFailed(f"{name}: {what} is not a detached single number")
        if not bool(value.isfinite()):
            raise CheckFailed(f"{name}: {what} is {value.item()}")


def _check_gradients(name: str, context: RunContext) -> None:
    trained = {key.removeprefix("model.") for key, _ in context.trainable()}
    if not trained:
        raise CheckFailed(f"{name}: nothing trains")
    for key, parameter in context.student.named_parameters():
        gradient = parameter.grad
        if key in trained and (gradient is None or not bool(gradient.isfinite().all()) or not bool(gradient.any())):
            state = "no gradient" if gradient is None else "a gradient that is zero or not finite"
            raise CheckFailed(f"{name}: {key} trains, and a step gives it {state}")
        if key not in trained and gradient is not None:
            raise CheckFailed(f"{name}: {key} is frozen, and a step gives it a gradient")


def _check_learning(name: str, context: RunContext, runner: StrategyRunner, tokens: Tensor) -> None:
    optimizer = torch.optim.Adam([parameter for _, parameter in context.trainable()], lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(_step(runner, tokens).loss.item())
        optimizer.step()
    if not losses[-1] < losses[0]:
        raise CheckFailed(f"{name}: forty steps on one batch take the loss from {losses[0]:.4f} to {losses[-1]:.4f}")
