"""The pretrain strategy against the whole cross entropy at once."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.layer_modules import LinearHeadModule
from caramba_plugins_standard.layers import LinearHead, RMSNorm, TokenEmbedder
from caramba_plugins_standard.pretrain import Pretrain
from caramba_plugins_standard.pretrain_runner import PretrainRunner
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.topologies import Residual, Stacked
from caramba_plugins_standard.training.batch import NO_TARGET, Batch
from caramba_plugins_standard.training.chunked_head import linear_cross_entropy
from torch.nn import functional as F

from caramba_core.components import Model
from caramba_core.lowering import lower
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel


def model_of(tied: bool) -> LanguageModel:
    attention = GroupedQueryAttention(n_heads=2, n_kv_heads=1, head_dim=4, rope=Rope())
    model = Model(
        head=LinearHead(),
        tied_embeddings=tied,
        embedder=TokenEmbedder(vocab_size=31, d_model=8, init_std=1.0),
        topology=Stacked(layers=(Residual(layers=(RMSNorm(), attention)), RMSNorm())),
    )
    return build(lower(model), dtype=torch.float64, seed=0)


def run(model: LanguageModel, tokens: torch.Tensor, rows: int) -> torch.Tensor:
    runner = PretrainRunner(
        Pretrain(logit_rows=rows),
        SimpleNamespace(student=model, autocast=nullcontext, run=SimpleNamespace(compiles=False)),
    )  # type: ignore[arg-type]
    runner.prepare()
    return runner.step(Batch(tokens=tokens)).loss


class Halved(LinearHeadModule):
    """A head of another distribution's."""

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x, weight) / 2


@pytest.mark.parametrize("head", [LinearHeadModule, Halved])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 14, 1000])
def test_loss_and_gradients_are_those_of_all_logits_at_once(
    tied: bool, rows: int, head: type[LinearHeadModule]
) -> None:
    model = model_of(tied)
    model.head.__class__ = head
    tokens = torch.randint(31, (2, 8))
    whole = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    wanted = torch.autograd.grad(whole, list(model.parameters()))
    loss = run(model.eval(), tokens, rows)
    torch.testing.assert_close(loss, whole.detach())
    assert not loss.requires_grad
    assert model.training
    torch.testing.assert_close([p.grad for p in model.parameters()], list(wanted))
    run(model, tokens, rows)
    torch.testing.assert_close([p.grad for p in model.parameters()], [2 * part for part in wanted])


def test_frozen_parameters_get_no_gradient() -> None:
    model = model_of(tied=False)
    tokens = torch.randint(31, (2, 8))
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    run(model, tokens, 4)
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {"head.weight"}
    model.zero_grad()
    model.requires_grad_(False)
    model.get_submodule("attention").requires_grad_(True)
    run(model, tokens, 4)
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {f"attention.{name}_proj" for name in "qkvo"}


def test_a_few_steps_learn_a_text_by_heart() -> None:
    model = model_of(tied=False)
    tokens = torch.randint(31, (2, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(float(run(model, tokens, 8)))
        optimizer.step()
    assert losses[-1] < 0.2 < 2.0 < losses[0]


@pytest.mark.parametrize("rows", [3, 64])
@pytest.mark.parametrize("trains", ["both", "hidden", "weight"])
def test_linear_cross_entropy_is_that_of_all_logits(rows: int, trains: str) -> None:
    held_against_all_logits(rows, trains, compiles=False)


def test_linear_cross_entropy_compiles() -> None:
    held_against_all_logits(6, "both", compiles=True)


def held_against_all_logits(rows: int, trains: str, *, compiles: bool) -> None:
    hidden, weight = torch.randn(12, 6, requires_grad=trains != "weight"), torch.randn(9, 6)
    weight.requires_grad_(trains != "hidden")
    targets = torch.randint(9, (12,)).index_fill(0, torch.tensor([2, 7]), NO_TARGET)
    wanted = F.cross_entropy(hidden @ weight.T, targets, reduction="sum") / 9
    found = linear_cross_entropy(hidden, weight, targets, rows=rows, compiles=compiles) / 9
    torch.testing.assert_close(found, wanted)
    leaves = [leaf for leaf in (hidden, weight) if leaf.requires_grad]
    torch.testing.assert_close(torch.autograd.grad(found, leaves), torch.autograd.grad(wanted, leaves))


def test_under_autocast_losses_and_sums_are_float32() -> None:
    hidden, weight = torch.randn(12, 6, requires_grad=True), torch.randn(9, 6, requires_grad=True)
    targets = torch.randint(9, (12,))
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(hidden, weight, targets, rows=5, compiles=False)
    wanted = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)
    got = torch.autograd.grad(found, (hidden, weight))
    assert {each.dtype for each in (found, *got)} == {torch.float32}
    torch.testing.assert_close(got, torch.autograd.grad(wanted, (hidden, weight)), rtol=3e-2, atol=3e-2)
