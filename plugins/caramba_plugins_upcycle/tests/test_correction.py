"""Refits that make good a part of what was lost before them, and refits of the layers between attentions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.layers import LinearHead, RMSNorm, SwiGLU, TokenEmbedder
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.topologies import Nested, Residual, Stacked
from caramba_plugins_upcycle.calibration import Calibration
from caramba_plugins_upcycle.modes import Start
from caramba_plugins_upcycle.stages import adds_to_stream, stages
from torch import Tensor

from caramba_core.components import Attention, Layer, Model
from caramba_core.graph import Graph
from caramba_core.lowering import lower
from caramba_core.nn.build import build, initialize
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel
from caramba_core.run.student import assemble
from caramba_core.sites import find_sites

WIDTH, VOCABULARY, LAYERS = 16, 32, 3
HEADS: dict[str, Any] = {"n_heads": 2, "n_kv_heads": 2, "head_dim": 8, "rope": Rope()}


def graph(attention: Attention, *, residual: bool = True, mlp: Layer | None = None) -> Graph:
    wrap = Residual if residual else Stacked
    block = (
        wrap(layers=(RMSNorm(), attention)),
        Residual(layers=(RMSNorm(), mlp or SwiGLU(d_ff=24))),
    )
    topology = Stacked(layers=(Nested(layers=block, repeat=LAYERS), RMSNorm()))
    return lower(
        Model(head=LinearHead(), embedder=TokenEmbedder(vocab_size=VOCABULARY, d_model=WIDTH), topology=topology)
    )


def teacher_of(**options: Any) -> LanguageModel:
    teacher = build(graph(GroupedQueryAttention(**HEADS), **options), device=torch.device("cpu"), dtype=torch.float32)
    initialize(teacher, 0)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(6.0)
    return teacher.requires_grad_(False)


def converted(teacher: LanguageModel, settings: Start, **options: Any) -> tuple[LanguageModel, dict[str, Any]]:
    small = DecoupledBottleneckAttention(**HEADS, sem_dim=4, geo_dim=8, v_dim=8, o_bias=True)
    wanted = graph(small, **options)
    student = assemble(
        wanted,
        teacher=teacher,
        tensors=None,
        trained=(),
        device=torch.device("cpu"),
        dtype=torch.float32,
        seed=0,
    )
    sites = find_sites(teacher.graph, wanted)
    report = Calibration(teacher=teacher, student=student, sites=sites, settings=settings).run(calibration())
    return student, report


def calibration() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(VOCABULARY, (4, 48), generator=generator) for _ in range(6)]


def solved(mixed: Tensor, wanted: Tensor, *, bias: bool) -> Tensor:
    """Least squares in float64, transposed as weights are; the bias in the last column."""
    rows = mixed.flatten(0, 1).double()
    if bias:
        rows = torch.cat([rows, torch.ones(len(rows), 1).double()], dim=1)
    return torch.linalg.lstsq(rows, wanted.flatten(0, 1).double()).solution.T


@torch.no_grad()
def test_refits_aim_at_the_teachers_output_and_a_share_of_the_error_before() -> None:
    teacher = teacher_of()
    student, _ = converted(teacher, Start(compensate=0.25, ridge=0.0, mlp_ridge=0.0, refit_mlp=True))
    tokens = torch.cat(calibration())
    frame = Frame.of(tokens)
    old = new = teacher.embedder(tokens)
    for index in range(LAYERS):
        block, theirs = student.get_submodule(f"blocks.{index}"), teacher.get_submodule(f"blocks.{index}")
        x, y = block.norm(new, frame), theirs.norm(old, frame)
        wanted = theirs.attention(y, frame)
        expected = solved(block.attention.mix(x, frame), wanted + 0.25 * (old - new), bias=True)
        found = torch.cat([block.attention.o_proj, block.attention.o_bias[:, None]], dim=1)
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)
        old, new = old + wanted, new + block.attention(x, frame)
        x, y = block.norm_2(new, frame), theirs.norm_2(old, frame)
        wanted = theirs.mlp(y, frame)
        expected = solved(block.mlp.mix(x, frame), wanted + 0.25 * (old - new), bias=False)
        torch.testing.assert_close(block.mlp.down_proj.double(), expected, rtol=1e-3, atol=1e-3)
        old, new = old + wanted, new + block.mlp(x, frame)


def test_the_teacher_stays_what_it_was() -> None:
    teacher = teacher_of()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student, report = converted(teacher, Start(refit_mlp=True))
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    changed = {
        name
        for name, tensor in student.named_parameters()
        if name in before and "mlp" in name and not torch.equal(before[name], tensor)
    }
    assert changed == {f"blocks.{index}.mlp.down_proj" for index in range(LAYERS)}
    assert {f"model.blocks.{index}.mlp" for index in range(LAYERS)} < report.keys()
    for index in range(LAYERS):
        refit = report[f"model.blocks.{index}.mlp"]["refit"]
        assert refit["after"] < refit["before"]


def test_a_bias_of_the_layer_between_is_refitted_too() -> None:
    mlp = SwiGLU(d_ff=24, bias=True)
    teacher = teacher_of(mlp=mlp)
    student, _ = converted(teacher, Start(refit_mlp=True), mlp=mlp)
    assert not torch.equal(
        student.get_parameter("blocks.0.mlp.down_bias"), teacher.get_parameter("blocks.0.mlp.down_bias")
    )


@pytest.mark.parametrize("compensate", [0.0, 0.5])
def test_outputs_that_are_not_added_to_the_stream_are_refitted_as_they_are(compensate: float) -> None:
    teacher = teacher_of(residual=False)
    student, _ = converted(teacher, Start(compensate=compensate), residual=False)
    plain, _ = converted(teacher, Start(compensate=0.0), residual=False)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), plain.parameters(), strict=True))


def test_what_adds_to_the_stream() -> None:
    teacher = teacher_of(residual=False)
    tokens = calibration()[0]
    x, frame = teacher.embedder(tokens), Frame.of(tokens)
    found = []
    for stage in stages(teacher):
        last = teacher.get_submodule(stage.names[-1].removeprefix("model."))
        found.append(adds_to_stream(last, stage, x, frame))
        x = stage.run(x, frame)
    # a stacked norm and attention are unfolded: each is a stage of its own
    assert found == [False, False, True] * LAYERS + [False]
    torch.testing.assert_close(x, teacher.hidden(tokens))
