import torch
from caramba_plugins_upcycle.refit import Refit


def data(tokens: int = 200, mixed: int = 7, width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(tokens, mixed, generator=generator) + 0.5
    true = torch.randn(width, mixed, generator=generator)
    return y, y @ true.T + 2.0 + 0.1 * torch.randn(tokens, width, generator=generator)


def test_without_ridge_it_is_least_squares_with_an_intercept() -> None:
    y, o = data()
    refit = Refit(torch.zeros(5, 7), torch.zeros(5))
    for part_y, part_o in zip(y.split(64), o.split(64), strict=True):
        refit.update(part_y.view(1, -1, 7), part_o.view(1, -1, 5))
    weight, bias, report = refit.solve(ridge=0.0)
    ones = torch.cat([y, torch.ones(len(y), 1)], dim=1).double()
    expected = torch.linalg.lstsq(ones, o.double()).solution
    torch.testing.assert_close(weight, expected[:-1].T, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(bias, expected[-1], rtol=1e-9, atol=1e-9)
    residual = (ones @ expected - o.double()).square().sum() / o.double().square().sum()
    assert abs(report["after"] - residual.item()) < 1e-9
    assert abs(report["before"] - 1.0) < 1e-9  # zeros explain nothing


def test_a_strong_ridge_keeps_the_start() -> None:
    y, o = data()
    start, bias = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)), torch.arange(5.0)
    refit = Refit(start, bias)
    refit.update(y, o)
    weight, new_bias, report = refit.solve(ridge=1e9)
    torch.testing.assert_close(weight.float(), start, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(new_bias.float(), bias, rtol=1e-5, atol=1e-5)
    assert abs(report["after"] - report["before"]) < 1e-5 * report["before"]


def test_the_solution_is_a_stationary_point_of_the_stated_objective() -> None:
    y, o = data()
    start = torch.randn(5, 7, generator=torch.Generator().manual_seed(2))
    refit = Refit(start, torch.zeros(5))
    refit.update(y, o)
    weight, bias, _ = refit.solve(ridge=0.05)
    w = torch.cat([weight.T, bias[None]]).requires_grad_()
    ones = torch.cat([y, torch.ones(len(y), 1)], dim=1).double()
    w0 = torch.cat([start.T, torch.zeros(1, 5)]).double()
    strength = 0.05 * y.double().square().sum(0).mean()
    objective = (ones @ w - o.double()).square().sum() + strength * (w - w0).square().sum()
    (gradient,) = torch.autograd.grad(objective, w)
    assert gradient.abs().max() < 1e-8 * objective.item()
