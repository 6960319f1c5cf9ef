"""Weights, shared weights, gradients and optimizer state of planned runs, against what the run code allocates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from caramba_core.graph import ROOT, local_name, trained_nodes
from caramba_core.lowered import lower_group
from caramba_core.manifest.load import load_manifest
from caramba_core.manifest.schema import Group
from caramba_core.modes import Teacher
from caramba_core.nn.build import build
from caramba_core.plan import plan_manifest
from caramba_core.plan.nodes import ModelPlan, plan_model
from caramba_core.plan.runs import Memory, TeacherPlan, plan_runs
from caramba_core.run.student import assemble
from caramba_core.sites import own_attentions

from .shapes import DBA, GQA, MLP, chain, graph_of, presets, residual

MANIFEST = """
version: 1
name: memory
model:
  tied_embeddings: true
  embedder: {type: token, vocab_size: 40, d_model: 24}
  topology:
    type: stacked
    layers:
      - type: nested
        repeat: 2
        layers:
          - type: residual
            layers:
              - rms_norm
              - type: dba
                n_heads: 4
                n_kv_heads: 2
                head_dim: 6
                rope: {theta: 100.0}
                sem_dim: 10
                geo_dim: 8
                v_dim: 7
                o_bias: true
          - {type: residual, layers: [rms_norm, {type: swiglu, d_ff: 32}]}
      - rms_norm
groups:
  - name: g
    teacher: {source: absent, dtype: float32}
    data: {train: train.npy, heldout: heldout.npy}
    runs:
      - {id: convert, mode: convert, start: {refit_mlp: REFIT}}
      - id: attention
        mode: train
        steps: 3
        train: {strategy: upcycle.global, trains: [attention], lr: 1e-3, batch_size: 2, context: 9}
      - id: rest
        mode: train
        steps: 3
        train: {strategy: upcycle.global, trains: [norm, mlp], lr: 1e-3, optimizer: OPTIMIZER}
      - {id: measure, mode: eval}
      - id: again
        mode: train
        steps: 3
        from: convert
        train: {strategy: upcycle.global, trains: ["*"], lr: 1e-3}
      - id: scratch
        mode: train
        steps: 3
        from: convert
        train: {strategy: pretrain, trains: ["blocks.1.*"], lr: 1e-3}
"""


def group_of(
    tmp_path: Path, dtype: str, optimizer: str, refit_mlp: bool = False
) -> tuple[Group, ModelPlan, TeacherPlan]:
    path = tmp_path / "memory.yml"
    text = MANIFEST.replace("dtype: float32", f"dtype: {dtype}").replace("OPTIMIZER", optimizer)
    path.write_text(text.replace("REFIT", str(refit_mlp).lower()))
    loaded = load_manifest(path)
    group = loaded.manifest.groups[0]
    block = {"type": "nested", "repeat": 2, "layers": [residual(GQA), residual(MLP)]}
    teacher = graph_of(chain(block, {"type": "rms_norm"}))
    taught = TeacherPlan(source="absent", dtype=dtype, model=plan_model(teacher, context=9, dtype=dtype))
    return group, plan_model(lower_group(loaded, group), context=9, dtype=dtype), taught


def held(tensors: list[Tensor]) -> int:
    """Bytes of the storages behind tensors, each once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def tensors_of(module: nn.Module) -> list[Tensor]:
    return list(module.state_dict(keep_vars=True).values())


@pytest.mark.parametrize("refit_mlp", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "{type: sgd, momentum: 0.0}"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_memory_of_a_group(tmp_path: Path, dtype: str, optimizer: str, refit_mlp: bool) -> None:
    group, model, taught = group_of(tmp_path, dtype, optimizer, refit_mlp)
    plans = {plan.id: plan for plan in plan_runs(group, model, taught)}
    assert taught.model is not None
    teacher = build(taught.model.graph, dtype=getattr(torch, dtype), seed=1).requires_grad_(False)
    results: dict[str, dict[str, Tensor]] = {}
    for run in group.runs:
        plan = plans[run.id]
        graph = model.graph
        trained = trained_nodes(graph, run.trains)
        student = assemble(
            graph,
            teacher=teacher,
            tensors=results.get(plan.continues or ""),
            trained=trained,
            device=torch.device("cpu"),
            dtype=getattr(torch, dtype),
            seed=0,
        )
        theirs = {t.untyped_storage().data_ptr() for t in tensors_of(teacher)}
        if run.mode == "convert" and refit_mlp:
            for block in (student.get_submodule("blocks.0"), student.get_submodule("blocks.1")):
                block.mlp.down_proj = nn.Parameter(block.mlp.down_proj + 1, requires_grad=False)
        own = [t for t in tensors_of(student) if t.untyped_storage().data_ptr() not in theirs]
        shared = [t for t in tensors_of(student) if t.untyped_storage().data_ptr() in theirs]
        gradients, state = trained_state(student, getattr(run, "train", None), trained)
        found = attrs.evolve(
            plan.memory,
            weights=held(own),
            shared=held(shared),
            teacher=held(tensors_of(teacher)),
            gradients=gradients,
            optimizer=state,
        )
        assert plan.memory == found, run.id
        assert plan.trained_parameters == sum(p.numel() for p in student.parameters() if p.requires_grad)
        changed = trained | (own_attentions(graph, taught.model.graph) if run.mode == "convert" else frozenset())
        results[run.id] = {
            f"{ROOT}.{name}": tensor.detach() + (1 if f"{ROOT}.{name}".rpartition(".")[0] in changed else 0)
            for name, tensor in student.state_dict().items()
        }


@pytest.mark.presets
@pytest.mark.parametrize("preset", presets())
def test_memory_of_presets(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At full size on the meta device, with a teacher that is not there: everything is the student's own."""

    def absent(teacher: Teacher, folder: Path, context: int) -> TeacherPlan:
        return TeacherPlan(source=teacher.source, dtype=teacher.dtype, reason="this test says so")

    monkeypatch.setattr("caramba_core.plan.planning.plan_teacher", absent)
    loaded = load_manifest(preset)
    for group, planned in zip(loaded.manifest.groups, plan_manifest(loaded), strict=True):
        assert group.teacher is not None
        graph = lower_group(loaded, group)
        dtype = getattr(torch, group.teacher.dtype)
        for run, plan in zip(group.runs, planned.runs, strict=True):
            student = build(graph, device="meta", dtype=dtype).requires_grad_(False)
            trained = trained_nodes(graph, run.trains)
            for name in trained:
                module = student.get_submodule(local_name(name))
                for key, parameter in list(module.named_parameters(recurse=False)):
                    wide = parameter.float() if dtype in (torch.bfloat16, torch.float16) else parameter
                    module.register_parameter(key, nn.Parameter(wide.detach()))
            gradients, state = trained_state(student, getattr(run, "train", None), trained)
            tensors = tensors_of(student)
            found = attrs.evolve(
                plan.memory,
                weights=sum(t.numel() * t.element_size() for t in tensors),
                shared=0,
                teacher=None,
                gradients=gradients,
                optimizer=state,
            )
            assert plan.memory == found, (group.name, run.id)


def trained_state(student: nn.Module, train: Any, trained: frozenset[str]) -> tuple[int, int]:
    """Bytes of gradients and optimizer state after one step."""
    if train is None:
        return 0, 0
    parameters = [p for p in student.parameters() if p.requires_grad]
    from caramba_plugins_standard.optimizers import AdamW

    optimizer = (train.optimizer or AdamW()).create([{"params": parameters}], train.lr)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    gradients = sum(p.grad.numel() * p.grad.element_size() for p in parameters if p.grad is not None)
    optimizer.step()
    state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
    return gradients, sum(t.numel() * t.element_size() for t in state)


def test_a_teacher_elsewhere_is_not_counted(tmp_path: Path) -> None:
    group, model, taught = group_of(tmp_path, "float32", "adamw")
    for plan in plan_runs(group, model, attrs.evolve(taught, model=None, reason="gone")):
        assert plan.memory.teacher is None
        assert plan.memory.shared == 0
        assert plan.memory.weights >= model.total.weight_bytes


def test_total_is_the_sum() -> None:
    parts = {f.name: 1 << index for index, f in enumerate(attrs.fields(Memory)) if f.name != "shared"}
    assert Memory(shared=10**9, **parts).total == sum(parts.values())


def test_windowed_dba_is_not_the_teachers() -> None:
    """A converted attention differs by any field but its name."""
    teacher = graph_of(chain(residual(GQA), residual(GQA)))
    student = graph_of(chain(residual({**GQA, "name": "attention"}), residual({**GQA, "window": 4})))
    assert own_attentions(student, teacher) == {"model.attention_2"}
    student = graph_of(chain(residual(DBA), residual(DBA)))
    assert own_attentions(student, teacher) == {"model.attention", "model.attention_2"}


def test_a_conversion_cannot_write_into_its_teacher() -> None:
    """DBA's output projection has the shape of its teacher's: refitting the one must leave the other alone."""
    teacher = build(graph_of(chain(residual(GQA), residual(MLP))), seed=1).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = assemble(
        graph_of(chain(residual(DBA), residual(MLP))),
        teacher=teacher,
        tensors=None,
        trained=frozenset(),
        device=torch.device("cpu"),
        dtype=torch.float32,
        seed=0,
    )
    with torch.no_grad():
        for tensor in student.get_submodule("attention").state_dict(keep_vars=True).values():
            tensor.zero_()
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert student.get_submodule("mlp").up_proj.data_ptr() == teacher.get_submodule("mlp").up_proj.data_ptr()
