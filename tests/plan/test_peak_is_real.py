"""What training steps hold at their peak, followed tensor by tensor, without values, against what plans predict."""

from __future__ import annotations

import gc
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
from caramba_plugins_upcycle.calibration import Calibration
from caramba_plugins_upcycle.modes import Convert
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.large import Followed
from caramba_core.graph import Graph, trained_nodes
from caramba_core.lowered import lower_group
from caramba_core.manifest.load import load_manifest
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel
from caramba_core.plan.nodes import plan_model
from caramba_core.plan.runs import RunPlan, TeacherPlan, plan_runs
from caramba_core.run.student import assemble
from caramba_core.sites import find_sites

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


SMALL = {
    "sem_dim: 64": "sem_dim: 8",
    "geo_dim: 128": "geo_dim: 16",
    "v_dim: 128": "v_dim: 16",
    "d_model: 512": "d_model: 64",
    "n_kv_heads: 8, head_dim: 64": "n_kv_heads: 2, head_dim: 16",
    "d_ff: 1536": "d_ff: 256",
    "vocab_size: 4096": "vocab_size: 128",
}


@attrs.frozen
class Conversion:
    """A teacher, not built yet, its student, and what is planned of the run that makes it."""

    theirs: Graph
    ours: Graph
    run: Convert
    plan: RunPlan
    dtype: torch.dtype

    @staticmethod
    def of(folder: Path, start: str, dtype: str, changes: dict[str, str]) -> Conversion:
        text = MANIFEST.replace(
            "mode: train, steps: 3, train: {TRAIN, lr: 1e-3, batch_size: 4, context: 512, dtype: bfloat16}",
            f"mode: convert, start: {start}",
        )
        for old, new in {**changes, "dtype: bfloat16": f"dtype: {dtype}"}.items():
            assert old in text
            text = text.replace(old, new)
        (folder / "peak.yml").write_text(text)
        loaded = load_manifest(folder / "peak.yml")
        group = loaded.manifest.groups[0]
        (run,), ours = group.runs, lower_group(loaded, group)
        assert isinstance(run, Convert)
        small = changes is SMALL
        attention = {**ATTENTION, **({"n_kv_heads": 2, "head_dim": 16} if small else {})}
        layers = [residual(attention), residual({"type": "swiglu", "d_ff": 256 if small else 1536})]
        topology = chain({"type": "nested", "repeat": 4, "layers": layers}, {"type": "rms_norm"})
        theirs = graph_of(topology, tied=False, width=64 if small else 512, vocabulary=128 if small else 4096)
        planned = {"context": run.start.max_context, "dtype": dtype}
        taught = TeacherPlan(source="absent", dtype=dtype, model=plan_model(theirs, **planned))
        (plan,) = plan_runs(group, plan_model(ours, **planned), taught)
        return Conversion(theirs, ours, run, plan, getattr(torch, dtype))

    def teacher(self, device: torch.device) -> LanguageModel:
        return build(self.theirs, device=device, dtype=self.dtype, seed=0).requires_grad_(False)

    def convert(self, teacher: LanguageModel, device: torch.device) -> None:
        context = self.run.start.max_context
        count = self.run.start.tokens // context
        tokens = torch.randint(128, (count, context), generator=torch.Generator().manual_seed(0)).to(device)
        kind: dict[str, Any] = {"trained": frozenset(), "device": device, "dtype": self.dtype, "seed": 0}
        student = assemble(self.ours, teacher=teacher, tensors=None, **kind)
        sites = find_sites(self.theirs, self.ours)
        calibration = Calibration(teacher=teacher, student=student, sites=sites, settings=self.run.start)
        calibration.run(list(tokens.split(self.run.start.batch_size)))


REFINED = "{tokens: 2048, max_context: 128, batch_size: 4, refine: true"


@pytest.mark.parametrize(
    ("start", "dtype", "within"),
    [
        ("{tokens: 4096, max_context: 256, batch_size: 2}", "float32", 0.15),
        ("{tokens: 16384, max_context: 64, batch_size: 4}", "bfloat16", 0.15),
        ("{tokens: 1024, max_context: 512, batch_size: 1}", "float32", 0.15),
        ("{tokens: 2048, max_context: 64, batch_size: 4, refit_mlp: true}", "float32", 0.15),
        (f"{REFINED}}}", "float32", 0.15),
        (f"{REFINED}}}", "bfloat16", 0.15),
        (f"{REFINED}, transplant: {{type: gqa_to_dba, refits: kv}}}}", "float32", 0.20),
    ],
)
def test_peak_of_a_conversion(tmp_path: Path, start: str, dtype: str, within: float) -> None:
    conversion, device = Conversion.of(tmp_path, start, dtype, SMALL), torch.device("cpu")
    teacher = conversion.teacher(device)
    followed = Followed(tensors_of(teacher))
    with followed:
        conversion.convert(teacher, device)
    assert conversion.plan.memory.total == pytest.approx(followed.peak, rel=within)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("more", ["", ", refit_mlp: true", ", refine: true"], ids=["plain", "refit_mlp", "refine"])
def test_peak_of_a_conversion_on_a_gpu(tmp_path: Path, more: str) -> None:
    start = f"{{tokens: 16384, max_context: 1024, batch_size: 4{more}}}"
    conversion, device = Conversion.of(tmp_path, start, "bfloat16", {}), torch.device("cuda")
    teacher = conversion.teacher(device)
    conversion.convert(teacher, device)  # with what libraries hold from then on
    del teacher
    gc.collect()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    conversion.convert(conversion.teacher(device), device)
    assert conversion.plan.memory.total == pytest.approx(torch.cuda.max_memory_allocated() - held, rel=0.15)
