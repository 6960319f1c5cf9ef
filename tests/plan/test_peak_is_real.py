"""What training steps hold at their peak, followed tensor by tensor, without values, against what plans predict."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from caramba_plugins_standard.modes import Train
from caramba_plugins_standard.training.batch import Batch
from caramba_plugins_standard.training.lora import adapt
from caramba_plugins_standard.training.planning import adapted_matrices
from caramba_plugins_standard.training.recomputing import recompute_activations
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.large import Followed
from caramba_core.graph import trained_nodes
from caramba_core.lowered import lower_group
from caramba_core.manifest.load import load_manifest
from caramba_core.nn.build import build
from caramba_core.plan.nodes import plan_model
from caramba_core.plan.runs import TeacherPlan, plan_runs
from caramba_core.run.student import assemble

from .shapes import chain, graph_of, residual

ATTENTION = {"type": "gqa", "n_heads": 8, "n_kv_heads": 8, "head_dim": 64, "rope": {"theta": 100.0}}
MANIFEST = """
version: 1
name: peak
model:
  embedder: {type: token, vocab_size: 4096, d_model: 512}
  topology:
    type: stacked
    layers:
      - type: nested
        repeat: 4
        layers:
          - type: residual
            layers:
              - rms_norm
              - {type: dba, n_heads: 8, n_kv_heads: 8, head_dim: 64, rope: {theta: 100.0}, sem_dim: 64, geo_dim: 128,
                 v_dim: 128, o_bias: true}
          - {type: residual, layers: [rms_norm, {type: swiglu, d_ff: 1536}]}
      - rms_norm
groups:
  - name: g
    teacher: {source: absent, dtype: bfloat16}
    data: {train: train.npy}
    runs:
      - {id: run, mode: train, steps: 3, train: {TRAIN, lr: 1e-3, batch_size: 4, context: 512, dtype: bfloat16}}
"""


def tensors_of(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


GLOBAL = "strategy: {type: upcycle.global, logit_rows: 64}"


@pytest.mark.parametrize(
    ("train", "within"),
    [
        (f"{GLOBAL}, lora: {{rank: 16}}", 0.10),
        (f"{GLOBAL}, lora: {{rank: 16}}, activation_checkpointing: full", 0.10),
        (f"{GLOBAL}, lora: {{rank: 4, targets: [attention]}}, trains: [norm]", 0.20),  # frozen MLPs keep less
        ("strategy: {type: upcycle.global, logit_rows: 64, hidden: {}}, lora: {targets: [mlp]}, trains: [norm]", 0.10),
    ],
)
def test_peak_of_a_step(tmp_path: Path, train: str, within: float) -> None:
    (tmp_path / "peak.yml").write_text(MANIFEST.replace("TRAIN", train))
    loaded = load_manifest(tmp_path / "peak.yml")
    group = loaded.manifest.groups[0]
    (run,), graph = group.runs, lower_group(loaded, group)
    assert isinstance(run, Train)
    block = {"type": "nested", "repeat": 4, "layers": [residual(ATTENTION), residual({"type": "swiglu", "d_ff": 1536})]}
    theirs = graph_of(chain(block, {"type": "rms_norm"}), tied=False, width=512, vocabulary=4096)
    taught = TeacherPlan(source="absent", dtype="bfloat16", model=plan_model(theirs, context=512, dtype="bfloat16"))
    (plan,) = plan_runs(group, plan_model(graph, context=512, dtype="bfloat16"), taught)

    trained, dtype, device = trained_nodes(graph, run.trains), torch.bfloat16, torch.device("cpu")
    with FakeTensorMode():
        teacher = build(theirs, dtype=dtype).requires_grad_(False)
        student = assemble(graph, teacher=teacher, tensors=None, trained=trained, device=device, dtype=dtype, seed=0)
        if run.train.lora is not None:
            adapt(student, adapted_matrices(graph, run.train.lora, trained), run.train.lora, seed=0)
        recompute_activations(student, run.train.activation_checkpointing)
        context: Any = SimpleNamespace(
            student=student,
            teacher=teacher,
            autocast=lambda: torch.autocast("cpu", dtype=dtype),
            run=SimpleNamespace(compiles=False),
        )
        runner = run.train.strategy.start(context)
        runner.prepare()
        followed = Followed([*tensors_of(teacher), *tensors_of(student)])
        batch = Batch(tokens=torch.zeros(4, 513, dtype=torch.int64))
        with followed:
            runner.step(batch)
    memory = attrs.evolve(plan.memory, optimizer=0)  # which exists, and was counted, elsewhere
    assert memory.total == pytest.approx(followed.peak, rel=within)
