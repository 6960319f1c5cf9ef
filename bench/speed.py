"""Speed of caramba's modules beside transformers' own, in one run: forward pass and training step of a SmolLM2-135M.

    python bench/speed.py [--threads 2] [--repeats 5] [--batch 4] [--tokens 512]

Random weights, float32, on the CPU.  Both models do the same in turn; each line of JSON gives the medians in seconds
and ``ratio``, transformers' time divided by caramba's (above 1: caramba is faster).  A training step is forward, mean
cross entropy, backward and fused AdamW.  ``cpu_ratio`` compares processor time instead of wall time: with
``--threads 1`` it holds on a busy machine too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import torch
import transformers
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.layers import LinearHead, RMSNorm, SwiGLU, TokenEmbedder
from caramba_plugins_standard.optimizers import AdamW
from caramba_plugins_standard.pretrain import Pretrain
from caramba_plugins_standard.pretrain_runner import PretrainRunner
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.topologies import Nested, Residual, Stacked
from torch import Tensor, nn

from caramba_core.components import Model
from caramba_core.lowering import lower
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel

VOCABULARY, LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, THETA = 49152, 30, 576, 9, 3, 64, 1536, 100000.0
LOGIT_ROWS = 512


def ours() -> LanguageModel:
    """SmolLM2-135M in caramba."""
    attention = GroupedQueryAttention(n_heads=HEADS, n_kv_heads=KV_HEADS, head_dim=HEAD_DIM, rope=Rope(theta=THETA))
    block = (Residual(layers=(RMSNorm(), attention)), Residual(layers=(RMSNorm(), SwiGLU(d_ff=HIDDEN))))
    model = Model(
        head=LinearHead(),
        tied_embeddings=True,
        embedder=TokenEmbedder(vocab_size=VOCABULARY, d_model=WIDTH),
        topology=Stacked(layers=(Nested(name="blocks", repeat=LAYERS, layers=block), RMSNorm())),
    )
    return build(lower(model), seed=0)


def theirs() -> nn.Module:
    """SmolLM2-135M in transformers, with its fused attention."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=True,
        use_cache=False,
    )
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")  # type: ignore[no-untyped-call]
    return model


def cases(ids: Tensor) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """What is timed, by name: caramba's and transformers' way to do the same.  ``ids`` is int64 ``[B, T + 1]``."""
    mine, other = ours(), theirs()
    assert sum(p.numel() for p in mine.parameters()) == sum(p.numel() for p in other.parameters())
    my_optimizer = AdamW().create([{"params": list(mine.parameters())}], lr=1e-4)
    other_optimizer = AdamW().create([{"params": list(other.parameters())}], lr=1e-4)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    @torch.no_grad()
    def my_forward() -> None:
        mine.eval()(inputs)

    @torch.no_grad()
    def other_forward() -> None:
        other.eval()(inputs)

    context = SimpleNamespace(student=mine, autocast=nullcontext, run=SimpleNamespace(compiles=False))
    runner = PretrainRunner(Pretrain(logit_rows=LOGIT_ROWS), context)

    def my_step() -> None:
        runner.prepare()
        my_optimizer.zero_grad(set_to_none=True)
        runner.step(ids)
        my_optimizer.step()

    def other_step() -> None:
        other_optimizer.zero_grad(set_to_none=True)
        other.train()(inputs, labels=inputs, shift_labels=targets).loss.backward()
        other_optimizer.step()

    return {"forward": (my_forward, other_forward), "training step": (my_step, other_step)}


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall time and processor time of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    """Time every case and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"the machine is busy (load {load:.1f}): figures will be off", file=sys.stderr)
    ids = torch.randint(VOCABULARY, (options.batch, options.tokens + 1))
    machine = {"torch": torch.__version__, "transformers": transformers.__version__, "load": round(load, 2)}
    for name, (mine, other) in cases(ids).items():
        mine()
        other()
        times: dict[str, list[tuple[float, float]]] = {"caramba": [], "transformers": []}
        for _ in range(options.repeats):
            times["caramba"].append(seconds(mine))
            times["transformers"].append(seconds(other))
        wall = {system: statistics.median(wall for wall, _ in values) for system, values in times.items()}
        processor = {system: statistics.median(cpu for _, cpu in values) for system, values in times.items()}
        line = {
            "case": name,
            "shape": [options.batch, options.tokens],
            "dtype": "float32",
            "threads": options.threads,
            "repeats": options.repeats,
            **{f"{system}_seconds": round(value, 4) for system, value in wall.items()},
            "ratio": round(wall["transformers"] / wall["caramba"], 4),
            "cpu_ratio": round(processor["transformers"] / processor["caramba"], 4),
            "spread": {system: [round(min(v)[0], 4), round(max(v)[0], 4)] for system, v in times.items()},
            **machine,
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
