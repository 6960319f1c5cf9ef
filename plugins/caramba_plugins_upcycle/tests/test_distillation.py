"""Distillation of logits and hidden states: what trains gets its gradient, whatever it is, as a plain loss gives it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from caramba_plugins_standard.marks import GIVEN, IDS
from caramba_plugins_standard.training.batch import Batch, batches_of
from caramba_plugins_standard.training.compiling import compile_blocks
from caramba_plugins_standard.training.recomputing import recompute_activations
from caramba_plugins_testing.strategies import check_strategy
from caramba_plugins_upcycle.strategies import Global, HiddenStates, KeptLogits
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


def step(
    config: Global, student: LanguageModel, teacher: LanguageModel, batch: Batch, folder: Path | None = None
) -> Any:
    context: Any = SimpleNamespace(
        student=student,
        teacher=teacher,
        autocast=nullcontext,
        run=SimpleNamespace(compiles=False, computation=("cpu", "float32")),
        shared=SimpleNamespace(inputs=lambda run: {}),
        directory=SimpleNamespace(path=folder),
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


def both_ways(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """KL(teacher || student) and KL(student || teacher) of each row, times ``temperature**2``."""
    q, p = ((logits / temperature).softmax(-1) for logits in (student, teacher))
    forward, back = (p * (p / q).log()).sum(-1), (q * (q / p).log()).sum(-1)
    return forward * temperature**2, back * temperature**2


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reverse", [0.0, 0.3, 1.0])
def test_the_gradient_of_the_divergence_is_autograd_s(reverse: float, masked: bool, temperature: float) -> None:
    student, teacher = torch.randn(5, 11, requires_grad=True), torch.randn(5, 11)
    learned = torch.tensor([True, False, True, True, False]) if masked else None
    sums = [
        rows.sum() if learned is None else (rows * learned).sum() for rows in both_ways(student, teacher, temperature)
    ]
    wanted = (1 - reverse) * sums[0] + reverse * sums[1]
    found, gradient = divergence_with_gradient(student.detach(), teacher, temperature, learned, reverse)
    torch.testing.assert_close(found, torch.stack(sums).detach() if reverse else sums[0].detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted, student)[0])
    if not reverse:
        torch.testing.assert_close(
            divergence(student, teacher, temperature).detach(), both_ways(student, teacher, temperature)[0].detach()
        )


def test_reverse_divergence_where_the_teacher_is_certain() -> None:
    student, teacher = torch.randn(3, 11), torch.randn(3, 11)
    teacher[:, 4] += 200.0  # other probabilities are no float32 any more, their logarithms are
    sums, gradient = divergence_with_gradient(student, teacher, 1.0, None, 0.5)
    assert bool(sums.isfinite().all()) and bool(gradient.isfinite().all()) and float(sums[1]) > 100.0


@pytest.mark.parametrize("top", [None, 29])
@pytest.mark.parametrize("reverse", [0.4, 1.0])
def test_a_step_of_both_divergences_learns_from_answers_alone(reverse: float, top: int | None, tmp_path: Path) -> None:
    student, teacher, reference = model_of(1), model_of(2).requires_grad_(False), model_of(1)
    words = torch.randint(1, 30, (1, 2, 8), generator=torch.Generator().manual_seed(3))
    words[0, :, 3] |= GIVEN
    words[0, 1, 4:] |= GIVEN
    (batch,) = batches_of(words, marked=True)
    config = Global(
        reverse=reverse,
        temperature=1.5,
        cross_entropy=0.5,
        logit_rows=5,
        keep_logits=None if top is None else KeptLogits(top=top),
    )
    found = step(config, student, teacher, batch, tmp_path)

    tokens, answers = words[0] & IDS, (words[0, :, 1:] & GIVEN) == 0
    assert 0 < int(answers.sum()) < answers.numel()
    ours, theirs = (model(tokens[:, :-1])[answers] for model in (reference, teacher))
    forward, back = (rows.mean() for rows in both_ways(ours, theirs, 1.5))
    cross_entropy = torch.nn.functional.cross_entropy(ours, tokens[:, 1:][answers])
    wanted = (1 - reverse) * forward + reverse * back + 0.5 * cross_entropy
    wanted.backward()
    close: dict[str, float] = {} if top is None else {"rtol": 5e-3, "atol": 1e-3}  # which are kept in float16
    metrics = {"kl": forward, "reverse_kl": back, "cross_entropy": cross_entropy}
    torch.testing.assert_close(found.loss, wanted.detach(), **close)
    for name, value in metrics.items():
        torch.testing.assert_close(found.metrics[name], value.detach(), **close)
    for one, other in zip(student.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, **close)
