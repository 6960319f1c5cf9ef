"""A conversion of a Llama-3.2-1B with the preset ``llama32_1b_dba``: time and memory, as told before and as measured.

    python bench/conversion.py                                # a minute on an H100
    python bench/conversion.py --shape mid --device cpu --tokens 4096
    python bench/conversion.py --shape tiny --device cpu --tokens 2048

Writes a checkpoint of random weights in bfloat16 and random tokens into a temporary folder, and runs the preset's
conversion there through :class:`~caramba_core.run.experiment.Experiment`.  Prints a JSON line: seconds and memory as
the run says before it starts, and as they were measured.  ``seconds`` are of the conversion itself, ``seconds_in_all``
from the command to its end: with reading, the rehearsal, measuring and writing.  ``phases`` are those of
:class:`caramba_plugins_upcycle.clock.Clock` and these.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from caramba_plugins_standard import measuring
from caramba_plugins_upcycle.calibration import Calibration
from caramba_terminal.reporter import Reporter
from rich.console import Console
from safetensors.torch import save_file

import caramba_core.run.context
from caramba_core.manifest.load import load_manifest
from caramba_core.run.context import GroupContext, RunContext
from caramba_core.run.experiment import Experiment

SHAPES: dict[str, dict[str, Any]] = {
    "1b": {"vocabulary": 128256, "layers": 16, "width": 2048, "heads": 32, "kv_heads": 8, "head": 64, "hidden": 8192},
    "mid": {"vocabulary": 4096, "layers": 8, "width": 2048, "heads": 32, "kv_heads": 8, "head": 64, "hidden": 8192},
    "tiny": {"vocabulary": 512, "layers": 8, "width": 128, "heads": 8, "kv_heads": 2, "head": 16, "hidden": 256},
}
SIZES = {"tiny": {"sem_dim": 8, "geo_dim": 12, "v_dim": 12}}
"""Of the attention, where the preset's do not fit."""


def write_checkpoint(folder: Path, shape: dict[str, Any], device: str) -> None:
    """A Llama of random weights in bfloat16, as Hugging Face keeps one."""
    generator = torch.Generator(device).manual_seed(0)
    width, hidden = shape["width"], shape["hidden"]
    heads, kv_heads = (shape[key] * shape["head"] for key in ("heads", "kv_heads"))
    projections = {
        "self_attn.q_proj": (heads, width),
        "self_attn.k_proj": (kv_heads, width),
        "self_attn.v_proj": (kv_heads, width),
        "self_attn.o_proj": (width, heads),
        "mlp.gate_proj": (hidden, width),
        "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
    }
    shapes = {"model.embed_tokens": (shape["vocabulary"], width)}
    for layer in range(shape["layers"]):
        shapes |= {f"model.layers.{layer}.{name}": size for name, size in projections.items()}
    tensors = {
        f"{name}.weight": (torch.randn(size, generator=generator, device=device) * 0.02).bfloat16().cpu()
        for name, size in shapes.items()
    }
    norms = [
        f"model.layers.{i}.{name}_layernorm" for i in range(shape["layers"]) for name in ("input", "post_attention")
    ]
    tensors |= {f"{name}.weight": torch.ones(width, dtype=torch.bfloat16) for name in (*norms, "model.norm")}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": shape["vocabulary"],
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "head_dim": shape["head"],
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))


def overrides(tokens: int, arguments: argparse.Namespace, folder: Path) -> list[str]:
    """What is set of the preset."""
    shape, block = SHAPES[arguments.shape], "model.topology.layers.0.layers"
    values = {
        "vars.teacher": folder,
        "vars.train": folder / "train.npy",
        "vars.heldout": folder / "heldout.npy",
        "vars.n_layers": shape["layers"],
        "vars.d_model": shape["width"],
        "model.embedder.vocab_size": shape["vocabulary"],
        f"{block}.0.layers.1.n_heads": shape["heads"],
        f"{block}.0.layers.1.n_kv_heads": shape["kv_heads"],
        f"{block}.0.layers.1.head_dim": shape["head"],
        f"{block}.1.layers.1.d_ff": shape["hidden"],
        "groups.0.runs.0.device": arguments.device,
        "groups.0.runs.0.start.tokens": tokens,
        **{f"vars.{name}": size for name, size in SIZES.get(arguments.shape, {}).items()},
    }
    return [*(f"{name}={value}" for name, value in values.items()), *arguments.set]


class Clock:
    """Seconds of phases around the conversion itself, which tells its own."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def follow(self, name: str, owner: Any, attribute: str) -> None:
        """Count every call of a function as a phase."""
        function: Callable[..., Any] = getattr(owner, attribute)

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - began

        setattr(owner, attribute, timed)


def run(tokens: int, arguments: argparse.Namespace, folder: Path, clock: Clock) -> dict[str, Any]:
    """One conversion."""
    cuda, output = arguments.device == "cuda", folder / f"runs_{tokens}"
    clock.seconds.clear()
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    loaded = load_manifest("llama32_1b_dba", overrides=overrides(tokens, arguments, folder))
    experiment = Experiment(loaded, run="convert", output=output, reporter=Reporter(Console(file=sys.stderr)))
    experiment.complete()
    in_all = time.perf_counter() - began
    plan = experiment.plans["x2"].runs[0]
    summary = json.loads((output / "llama32_1b_dba/x2/convert/summary.json").read_text())
    phases = {**clock.seconds, **summary["phases"]}
    phases["rest"] = in_all - sum(phases.values())
    found: dict[str, Any] = {
        "shape": arguments.shape,
        "tokens": summary["calibration_tokens"],
        "predicted_seconds": summary["expected_seconds"],
        "seconds": round(sum(summary["phases"].values()), 2),
        "seconds_in_all": round(in_all, 2),
        "operations": plan.operations,
        "predicted_gib": round(plan.memory.total / 2**30, 2),
        "perplexity_ratio": round(summary["perplexity_ratio"]["end"], 4),
        "phases": {name: round(seconds, 2) for name, seconds in phases.items()},
    }
    if cuda:
        found["gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        found["reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
    return found


def main() -> None:
    """Write a checkpoint, and convert it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tokens", type=int, nargs="+", default=[262144], help="to calibrate on, one conversion each")
    parser.add_argument("--set", action="append", default=[], help="path=value, more of the preset")
    arguments = parser.parse_args()
    cuda = arguments.device == "cuda"
    device = torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads"
    print(json.dumps({"device": device, "torch": torch.__version__, "caramba": version("caramba-core")}), flush=True)
    clock = Clock()
    clock.follow("reading", GroupContext, "teacher")
    clock.follow("student", caramba_core.run.context, "assemble")
    clock.follow("measuring", measuring, "measure_run")
    clock.follow("rehearsal", Calibration, "expected")
    clock.follow("writing", RunContext, "save")
    with tempfile.TemporaryDirectory() as own:
        folder, shape = Path(own), SHAPES[arguments.shape]
        write_checkpoint(folder, shape, arguments.device)
        random = np.random.default_rng(0)
        for name, count in ("train", max(arguments.tokens) + 4096), ("heldout", 2**16):
            np.save(folder / f"{name}.npy", random.integers(shape["vocabulary"], size=count, dtype=np.uint32))
        for tokens in arguments.tokens:
            print(json.dumps(run(tokens, arguments, folder, clock)), flush=True)


if __name__ == "__main__":
    main()
