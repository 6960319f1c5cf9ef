"""Distillation of logits and hidden states: what trains gets its gradient, whatever it is, as a plain loss gives it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from caramba_plugins_standard.training.batch import Batch
from caramba_plugins_standard.training.compiling import compile_blocks
from caramba_plugins_standard.training.recomputing import recompute_activations
from caramba_plugins_testing.strategies import check_strategy
from caramba_plugins_upcycle.strategies import Global, HiddenStates
from caramba_plugins_upcycle.strategy_runners import GlobalRunner, divergence, divergence_with_gradient
from torch import Tensor

from caramba_core.errors import InputError, InvalidValue
from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_core.nn.build import build
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel


@pytest.mark.parametrize("trains", ["head", "attention", "*"])
@pytest.mark.parametrize("cross_entropy", [0.0, 0.5])
def test_whatever_trains(trains: str, cross_entropy: float, tmp_path: Path) -> None:
    """The head alone, which is not tied, too: then nothing runs backward through the layers."""
    strategy = Global(cross_entropy=cross_entropy, logit_rows=5)
    check_strategy(strategy, tmp_path, trains=(trains,))


def model_of(seed: int, *, blocks: int = 3, topology: str = "nested") -> LanguageModel:
    attention = {"type": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "rope": {"theta": 100.0}}
    layers = [
        {"type": "residual", "layers": [{"type": "rms_norm"}, attention]},
        {"type": "residual", "layers": [{"type": "rms_norm"}, {"type": "swiglu", "d_ff": 40}]},
    ]
    repeated: Any = {"type": "nested", "name": "blocks", "repeat": blocks, "layers": layers}
    if topology != "nested":
        repeated = {"type": "stacked", "layers": layers}
    model = build(
        lower(
            structure_model(
                {
                    "embedder": {"type": "token", "vocab_size": 30, "d_model": 24},
                    "topology": {"type": "stacked", "layers": [repeated, {"type": "rms_norm"}]},
                }
            )
        ),
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def states_of(model: LanguageModel, tokens: Tensor) -> list[Tensor]:
    """What flows behind each block, by running one after the other."""
    x, frame, found = model.embedder(tokens), Frame.of(tokens), []
    for block in model.get_submodule("blocks").children():
        x = block(x, frame)
        found.append(x)
    return found


def step(config: Global, student: LanguageModel, teacher: LanguageModel, batch: Batch) -> Any:
    context: Any = SimpleNamespace(
        student=student, teacher=teacher, autocast=nullcontext, run=SimpleNamespace(compiles=False)
    )
    runner = GlobalRunner(config, context)
    runner.prepare()
    return runner.step(batch)


@pytest.mark.parametrize("variant", ["plain", "recomputed", "compiled", "head", "attention"])
@pytest.mark.parametrize("blocks", [None, (2,), (1, 0)])
@pytest.mark.parametrize("masked", [False, True])
def test_hidden_states_against_a_plain_loss(masked: bool, blocks: tuple[int, ...] | None, variant: str) -> None:
    student, teacher, reference = model_of(1), model_of(2).requires_grad_(False), model_of(1)
    tokens = torch.randint(0, 30, (2, 8), generator=torch.Generator().manual_seed(3))
    learned = torch.rand(2, 7, generator=torch.Generator().manual_seed(4)) > 0.4 if masked else None
    batch = Batch(tokens=tokens, learned=learned, step_targets=None if learned is None else learned.sum())
    if variant in ("head", "attention"):
        for name, parameter in (*student.named_parameters(), *reference.named_parameters()):
            parameter.requires_grad_(variant in name)
    recompute_activations(student, "full" if variant == "recomputed" else "none")
    if variant == "compiled":
        compile_blocks(student, backend="eager")
        compile_blocks(teacher, backend="eager")
    found = step(Global(hidden=HiddenStates(weight=0.7, blocks=blocks), logit_rows=5), student, teacher, batch)

    inputs, counts = tokens[:, :-1], torch.ones(2, 7) if learned is None else learned.float()
    kl = (divergence(reference(inputs).flatten(0, 1), teacher(inputs).flatten(0, 1), 1.0) * counts.flatten()).sum()
    errors = []
    for number, (ours, theirs) in enumerate(zip(states_of(reference, inputs), states_of(teacher, inputs), strict=True)):
        if blocks is None or number in blocks:
            rows = (ours - theirs).norm(dim=-1) ** 2 / theirs.norm(dim=-1) ** 2
            errors.append((rows * counts).sum() / counts.sum())
    wanted = kl / counts.sum() + 0.7 * sum(errors) / len(errors)
    wanted.backward()
    torch.testing.assert_close(found.loss, wanted.detach())
    torch.testing.assert_close(found.metrics["hidden"], (sum(errors) / len(errors)).detach())  # type: ignore[union-attr]
    for ours, theirs in zip(student.parameters(), reference.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_blocks_that_are_not_there() -> None:
    batch = Batch(tokens=torch.randint(0, 30, (2, 8)))
    with pytest.raises(InputError, match="hidden states of 2 blocks are asked for, and 1 are there"):
        step(Global(hidden=HiddenStates(blocks=(1, 3))), model_of(1), model_of(2), batch)
    with pytest.raises(InputError, match="blocks that both have"):
        step(Global(hidden=HiddenStates()), model_of(1, blocks=2), model_of(2), batch)
    with pytest.raises(InputError, match="of 0 blocks"):
        step(Global(hidden=HiddenStates()), model_of(1, topology="plain"), model_of(2, topology="plain"), batch)
    for hidden, topology, there in ((HiddenStates(blocks=(1, 3)), "nested", 3), (HiddenStates(), "plain", 0)):
        with pytest.raises(InvalidValue, match=f"the model has {there} blocks"):
            Global(hidden=hidden).check(model_of(1, topology=topology).graph, [], frozenset())
    with pytest.raises(InvalidValue, match="are no blocks"):
        HiddenStates(blocks=(1, 1))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_of_the_divergence_is_autograd_s(temperature: float, masked: bool) -> None:
    student, teacher = torch.randn(5, 11, requires_grad=True), torch.randn(5, 11)
    learned = torch.tensor([True, False, True, True, False]) if masked else None
    rows = divergence(student, teacher, temperature)
    wanted = rows.sum() if learned is None else (rows * learned).sum()
    found, gradient = divergence_with_gradient(student.detach(), teacher, temperature, learned)
    torch.testing.assert_close(found, wanted.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted, student)[0])
