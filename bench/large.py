"""A Llama-3.1-8B with DBA at half the cache: memory as planned, and speed.

    python bench/large.py                                     # under three minutes on an H200
    python bench/large.py --cases sharded                     # on two GPUs
    python bench/large.py --shape tiny --device cpu --dtype float32 --cases kept,recomputed
    python bench/large.py --without-values                    # on any machine, in half a minute

Runs ``upcycle.global`` with ``lora: {rank: 16}`` through :class:`~caramba_core.run.experiment.Experiment`, from random
weights that are drawn on the device, and leaves it behind its last step, where it would write a checkpoint.  Each case
prints a JSON line: what the plan predicted, what was measured, by how much they differ, and tokens/s.  ``kept`` keeps
activations, ``recomputed`` has ``activation_checkpointing: full`` and batches that would not fit otherwise,
``compiled`` is the same with compiled blocks.  ``sharded`` trains all weights, in float32, without adapters:
``shard: true`` among two processes, activations computed again.

On CUDA the other cases may use 80 GB, whatever the GPU has.  ``--without-values`` follows one step of each case tensor
by tensor, without their values, and compares the most bytes that are alive with the plan: as kernels of a CPU keep
them, but for attention, which counts as one fused kernel.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Container
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from caramba_plugins_standard.modes import Train
from caramba_plugins_standard.training.batch import Batch
from caramba_plugins_standard.training.loop import TrainRunner
from caramba_plugins_standard.training.lora import adapt
from caramba_plugins_standard.training.planning import adapted_matrices
from caramba_plugins_standard.training.recomputing import recompute_activations
from caramba_terminal.limit import Paused
from caramba_terminal.reporter import Reporter
from rich.console import Console
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import caramba_core.run.student
from caramba_core.cli import main
from caramba_core.components import Constant
from caramba_core.graph import Graph
from caramba_core.lowered import lower_group
from caramba_core.lowering import lower
from caramba_core.manifest.load import load_manifest
from caramba_core.manifest.structure import structure_model
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel
from caramba_core.nn.module import ComponentModule
from caramba_core.run.experiment import Experiment
from caramba_core.teachers import reader

LIMIT = 80 * 10**9
RANK = int(os.environ.get("RANK", "0"))
SHAPES: dict[str, dict[str, Any]] = {
    "8b": {
        "vocabulary": 128256,
        "layers": 32,
        "width": 4096,
        "heads": {"n_heads": 32, "n_kv_heads": 8, "head_dim": 128},
        "hidden": 14336,
        "dba": {"sem_dim": 192, "geo_dim": 384, "v_dim": 448},
        "context": 2048,
        "batches": {"kept": 3, "recomputed": 16, "compiled": 16, "sharded": 4},
    },
    "tiny": {
        "vocabulary": 512,
        "layers": 3,
        "width": 64,
        "heads": {"n_heads": 4, "n_kv_heads": 2, "head_dim": 16},
        "hidden": 224,
        "dba": {"sem_dim": 8, "geo_dim": 16, "v_dim": 16},
        "context": 64,
        "batches": {"kept": 2, "recomputed": 16, "compiled": 16, "sharded": 4},
    },
}
ROPE = {
    "theta": 500000.0,
    "scaling": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def model(shape: dict[str, Any], attention: dict[str, Any]) -> dict[str, Any]:
    """A Llama of this shape with an attention."""
    norm = {"type": "rms_norm", "eps": 1e-5}
    block = [
        {"type": "residual", "layers": [norm, {**shape["heads"], "rope": ROPE, **attention}]},
        {"type": "residual", "layers": [norm, {"type": "swiglu", "d_ff": shape["hidden"]}]},
    ]
    blocks = {"type": "nested", "name": "blocks", "repeat": shape["layers"], "layers": block}
    return {
        "type": "transformer",
        "tied_embeddings": False,
        "embedder": {"type": "token", "vocab_size": shape["vocabulary"], "d_model": shape["width"]},
        "topology": {"type": "stacked", "layers": [blocks, norm]},
    }


@torch.no_grad()
def draw(module: nn.Module, seed: int, given: Container[str] = ()) -> None:
    """Random weights, also of what is ``given``, where they lie: eight billion of them on a CPU would take minutes."""
    generator = torch.Generator(next(module.parameters()).device).manual_seed(seed)
    for part in module.modules():
        if isinstance(part, ComponentModule):
            for name, weight in part.config.weights(part.width).items():
                if weight.trainable and isinstance(weight.init, Constant):
                    getattr(part, name).fill_(weight.init.value)
                elif weight.trainable:
                    getattr(part, name).normal_(std=0.02, generator=generator)
                elif hasattr(weight.init, "values"):
                    getattr(part, name).copy_(torch.tensor(weight.init.values))


class RandomTeacher:
    """A pretrained model without a file."""

    pinned = "random"

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def tokenizer(self) -> None:
        """It has none."""

    def check(self) -> None:
        """There is nothing to check."""

    def load(self, device: torch.device, dtype: torch.dtype) -> LanguageModel:
        """Its weights, frozen."""
        teacher = build(self.graph, device=device, dtype=dtype).requires_grad_(False).eval()
        draw(teacher, 0)
        return teacher


class Followed(TorchDispatchMode):
    """Bytes of the storages that are alive, and the most that there were."""

    def __init__(self, there: list[Tensor]) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0
        for tensor in there:
            self.follow(tensor)

    def follow(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.freed, key)

    def freed(self, key: int) -> None:
        """A storage is gone."""
        self.now -= self.alive.pop(key)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What ``function`` gives, followed."""
        made = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.follow, made)
        return made


class FusedAttention(torch.autograd.Function):
    """What one fused kernel keeps: its inputs, its output, and a float32 number for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``[B, H, T, d]``, without values."""
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        """Of each input."""
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def follow(case: str, arguments: argparse.Namespace, folder: Path, theirs: Graph) -> dict[str, Any]:
    """The most bytes of one step, without values, beside the plan."""
    experiment, batch = prepared(case, arguments, folder)
    group, plan = experiment.loaded.manifest.groups[0], experiment.plans["group"].runs[0]
    (one,) = group.runs
    assert isinstance(one, Train)
    assert one.train.lora is not None
    graph = lower_group(experiment.loaded, group)
    dtype, shape = getattr(torch, arguments.dtype), SHAPES[arguments.shape]
    F.scaled_dot_product_attention = lambda query, key, value, **_: FusedAttention.apply(query, key, value)
    with FakeTensorMode():
        teacher = build(theirs, dtype=dtype).requires_grad_(False)
        student = caramba_core.run.student.assemble(
            graph,
            teacher=teacher,
            tensors=None,
            trained=frozenset(),
            device=torch.device("cpu"),
            dtype=dtype,
            seed=0,
        )
        adapt(student, adapted_matrices(graph, one.train.lora, frozenset()), one.train.lora, seed=0)
        recompute_activations(student, one.train.activation_checkpointing)
        context: Any = SimpleNamespace(
            student=student,
            teacher=teacher,
            autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16),
            run=SimpleNamespace(compiles=False),
        )
        runner = one.train.strategy.start(context)
        runner.prepare()
        followed = Followed([tensor for each in (teacher, student) for tensor in (*each.parameters(), *each.buffers())])
        with followed:
            runner.step(Batch(tokens=torch.zeros(batch, shape["context"] + 1, dtype=torch.int64)))
    total = followed.peak + plan.memory.optimizer  # which a step without an optimizer has not
    return {
        "case": case,
        "shape": arguments.shape,
        "batch": batch,
        "context": shape["context"],
        "predicted_gb": round(plan.memory.total / 1e9, 3),
        "followed_gb": round(total / 1e9, 3),
        "predicted_over_followed": round(plan.memory.total / total, 3),
    }


def prepared(case: str, arguments: argparse.Namespace, folder: Path) -> tuple[Experiment, int]:
    """The experiment of a case, and its batch size."""
    shape, cuda = SHAPES[arguments.shape], arguments.device == "cuda"
    batch, context = arguments.batch or shape["batches"][case], shape["context"]
    train: dict[str, Any] = {
        "strategy": "upcycle.global",
        "device": arguments.device,
        "dtype": "bfloat16" if cuda or arguments.without_values else "float32",
        "batch_size": batch,
        "context": context,
        "lr": 1e-4,
        "checkpoint_minutes": None,
        "activation_checkpointing": "none" if case == "kept" else "full",
        "compile": case == "compiled",
    }
    if case == "sharded":
        train["parallel"] = {"data": arguments.processes, "shard": True}
    else:
        train["lora"] = {"rank": 16}
    generator = np.random.default_rng(0)
    count = (arguments.steps + 1) * batch * context + 1
    if arguments.within is None:
        np.save(folder / "train.npy", generator.integers(shape["vocabulary"], size=count, dtype=np.uint32))
    group = {
        "name": "group",
        "teacher": {"source": "random", "dtype": arguments.dtype},
        "data": {"train": str(folder / "train.npy")},
        "runs": [{"id": case, "mode": "train", "seed": 1, "steps": arguments.steps, "train": train}],
    }
    document = {"version": 1, "name": "large", "model": model(shape, {"type": "dba", **shape["dba"], "o_bias": True})}
    file = folder / "manifest.json"
    if arguments.within is None:
        file.write_text(json.dumps({**document, "groups": [group]}))
    loaded = load_manifest(str(file))
    return Experiment(loaded, output=folder / case, reporter=Reporter(Console(file=sys.stderr))), batch


def run(case: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run of ten steps."""
    experiment, batch = prepared(case, arguments, folder)
    context, cuda = SHAPES[arguments.shape]["context"], arguments.device == "cuda"
    plan = experiment.plans["group"].runs[0]
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    if arguments.within:  # the first process calls the others from the command
        with suppress(SystemExit):
            main(["run", str(folder / "manifest.json"), "--output", str(folder / case)])
    else:
        with suppress(Paused):
            experiment.complete()
    lines = (folder / case / "large" / "group" / case / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    seconds = median([after["seconds"] - before["seconds"] for before, after in pairwise(records)][2:])
    found: dict[str, Any] = {
        "case": case,
        "shape": arguments.shape,
        "batch": batch,
        "context": context,
        "steps": len(records),
        "trained_parameters": plan.trained_parameters,
        "predicted_gb": round(plan.memory.total / 1e9, 3),
        "seconds_a_step": round(seconds, 3),
        "tokens_per_second": round(batch * context / seconds),
        "first_loss": round(records[0]["loss"], 4),
        "last_loss": round(records[-1]["loss"], 4),
    }
    if cuda:
        peak = torch.cuda.max_memory_allocated()
        found["measured_gb"] = round(peak / 1e9, 3)
        found["reserved_gb"] = round(torch.cuda.max_memory_reserved() / 1e9, 3)
        found["predicted_over_measured"] = round(plan.memory.total / peak, 3)
    memory = plan.memory
    parts = ("weights", "teacher", "gradients", "optimizer", "activations", "cast", "logits", "working")
    found["predicted"] = {name: round(getattr(memory, name) / 1e9, 3) for name in parts}
    return found


def run_sharded(arguments: argparse.Namespace) -> None:
    """The case ``sharded``: this file again, in several processes with one folder."""
    with tempfile.TemporaryDirectory() as folder:
        prepared("sharded", arguments, Path(folder))
        several = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(arguments.processes)]
        command = [sys.executable, "-m", *several, *sys.argv, "--cases", "sharded", "--within", folder]
        subprocess.run(command, check=True)


def measure() -> None:
    """Run the cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", default="bfloat16", help="of the teacher, and of what stays as it is")
    parser.add_argument("--cases", default="kept,recomputed,compiled")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, help="instead of each case's own")
    parser.add_argument("--processes", type=int, default=2, help="of the case sharded")
    parser.add_argument("--within", type=Path, help=argparse.SUPPRESS)  # the folder of a process of the case sharded
    parser.add_argument("--without-values", action="store_true", help="follow one step, and compute nothing")
    arguments = parser.parse_args()
    if arguments.without_values:
        arguments.device, arguments.cases = "cpu", "kept,recomputed"
    graph = lower(structure_model(model(SHAPES[arguments.shape], {"type": "gqa"})))
    readers = type(reader("random"))
    readers.open = readers.cached = lambda *_, **__: RandomTeacher(graph)  # type: ignore[method-assign]
    caramba_core.run.student.initialize = draw

    def leave(self: TrainRunner, **_: bool) -> None:
        raise Paused("left where it would write its checkpoint")

    TrainRunner._save = leave  # type: ignore[method-assign]
    if arguments.device == "cuda":
        limit = None if arguments.within else LIMIT / 10**9
        if limit:
            torch.cuda.set_per_process_memory_fraction(LIMIT / torch.cuda.get_device_properties(0).total_memory)
        if RANK == 0:
            print(json.dumps({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "limit_gb": limit}))
    for case in arguments.cases.split(","):
        if case == "sharded" and arguments.within is None:
            run_sharded(arguments)
            continue
        with tempfile.TemporaryDirectory() as own:
            place = arguments.within or Path(own)
            found = follow(case, arguments, place, graph) if arguments.without_values else run(case, arguments, place)
            if RANK == 0:
                print(json.dumps(found), flush=True)
        gc.collect()
        if arguments.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    measure()
