"""Decode steps of exported students in stock transformers beside the teacher's, on one GPU: Llama-3.2-1B shape.

    python bench/serving_gpu.py [--points 32x16384] [--sides teacher,x2,x4] [--attention sdpa,gqa,cudnn,flex]
    python bench/serving_gpu.py --shape tiny --device cpu --plain --points 2x64 --attention sdpa,gqa --steps 4

The students have the configuration that ``caramba export --as llama`` writes for the groups of the preset
``llama32_1b_servable``; every model is transformers' own ``LlamaForCausalLM`` with random weights in bfloat16, a static
cache full of random values, and ``torch.compile(mode="reduce-overhead")`` unless ``--plain``.  ``--attention``:
``sdpa`` is what transformers takes by itself, which copies keys and values for every query head while it compiles;
``gqa`` the same with ``TRANSFORMERS_SDPA_FORCE_GQA=1``, which does not; ``cudnn`` is ``gqa`` with no kernel but
cuDNN's; ``flex`` is ``flex_attention``.  Each line of JSON gives the median ms per step, tokens/s, bytes of weights and
cache, and ``ratio``: tokens/s over the teacher's with the same attention.  The last line gives each student's best over
the teacher's best.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import transformers
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.export.exporter import DBAExporter
from caramba_plugins_llama.exporting import Original
from caramba_plugins_llama.standard_exporter import StandardExporter
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.layers import LinearHead, RMSNorm, SwiGLU, TokenEmbedder
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.topologies import Nested, Residual, Stacked

from caramba_core.components import Attention, Model
from caramba_core.lowering import lower

SHAPES: dict[str, dict[str, int]] = {
    "1b": {"vocabulary": 128256, "layers": 16, "width": 2048, "heads": 32, "groups": 8, "head": 64, "hidden": 8192},
    "tiny": {"vocabulary": 512, "layers": 2, "width": 128, "heads": 8, "groups": 2, "head": 16, "hidden": 256},
}
SIZES: dict[str, dict[str, dict[str, int]]] = {
    "1b": {
        "x2": {"groups": 2, "sem_dim": 64, "geo_dim": 192, "v_dim": 256},
        "x4": {"groups": 1, "sem_dim": 32, "geo_dim": 96, "v_dim": 128},
    },
    "tiny": {
        "x2": {"groups": 1, "sem_dim": 8, "geo_dim": 24, "v_dim": 32},
        "x4": {"groups": 1, "sem_dim": 4, "geo_dim": 12, "v_dim": 16},
    },
}
ROPE = Rope(
    theta=500000.0,
    scaling="llama3",
    factor=32.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
ATTENTIONS = {
    "sdpa": ("sdpa", "0"),
    "gqa": ("sdpa", "1"),
    "cudnn": ("sdpa", "1"),
    "flex": ("flex_attention", "0"),
}
FORCE = "TRANSFORMERS_SDPA_FORCE_GQA"


def exported(side: str, shape: str) -> dict[str, Any]:
    """The ``config.json`` that an export of this side writes."""
    sizes = SHAPES[shape]
    heads = {"n_heads": sizes["heads"], "n_kv_heads": sizes["groups"], "head_dim": sizes["head"], "rope": ROPE}
    attention: Attention = GroupedQueryAttention(**heads)
    if side != "teacher":
        own = SIZES[shape][side]
        attention = DecoupledBottleneckAttention(**heads, **own, layout="servable", geo_layout="shared")
    block = (
        Residual(layers=(RMSNorm(eps=1e-5), attention)),
        Residual(layers=(RMSNorm(eps=1e-5), SwiGLU(d_ff=sizes["hidden"]))),
    )
    blocks = Nested(name="blocks", repeat=sizes["layers"], layers=block)
    model = Model(
        head=LinearHead(),
        tied_embeddings=True,
        embedder=TokenEmbedder(vocab_size=sizes["vocabulary"], d_model=sizes["width"]),
        topology=Stacked(layers=(blocks, RMSNorm(eps=1e-5))),
    )
    graph, origin = lower(model), {"max_position_embeddings": 131072, "model_type": "llama"}
    if side == "teacher":
        return dict(StandardExporter.describe("llama", Original(graph=graph, settings=origin)).config)
    available, kept = sizes["head"] // 2, own["geo_dim"] // (2 * own["groups"])
    pairs = (torch.arange(kept) * available // kept).expand(own["groups"], kept)
    tensors = {f"blocks.{index}.attention.pairs": pairs for index in range(sizes["layers"])}
    return dict(DBAExporter.describe("llama", Original(graph=graph, settings=origin, tensors=tensors)).config)


def loaded(config: dict[str, Any], device: str, attention: str) -> Any:
    """transformers' own model of a configuration, with random weights."""
    settings = transformers.AutoConfig.for_model(**config)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            settings, attn_implementation=attention, dtype=torch.bfloat16
        )
    assert type(model).__name__ == "LlamaForCausalLM"
    return model.to(device).eval().requires_grad_(False)


def milliseconds(step: Callable[[], object], count: int, device: str) -> float:
    """Median over ``count`` steps; the first ones warm up."""
    for _ in range(5):
        step()
    if device == "cpu":
        marks = [time.perf_counter()]
        for _ in range(count):
            step()
            marks.append(time.perf_counter())
        return statistics.median(two - one for one, two in pairwise(marks)) * 1e3
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(one.elapsed_time(two) for one, two in pairwise(events))


@torch.no_grad()
def timed(model: Any, batch: int, context: int, steps: int, device: str, plain: bool) -> dict[str, Any]:
    """Steps at the end of a static cache of random values."""
    began = time.perf_counter()
    cache = transformers.StaticCache(config=model.config, max_cache_len=context)
    tokens = torch.randint(100, (batch, 1), device=device)
    model(tokens, past_key_values=cache, use_cache=True)

    def rewind() -> None:
        for layer in cache.layers:
            layer.cumulative_length.fill_(context - steps - 8)

    for layer in cache.layers:
        layer.keys.normal_(), layer.values.normal_()
    rewind()
    forward = model.forward if plain else torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)

    def step() -> None:
        nonlocal tokens
        torch.compiler.cudagraph_mark_step_begin()
        tokens = forward(tokens, past_key_values=cache, use_cache=True).logits[:, -1].argmax(dim=-1, keepdim=True)

    step(), step()
    ready = time.perf_counter() - began
    rewind()
    found = milliseconds(step, steps, device)
    held = sum(2 * layer.keys.numel() * layer.keys.element_size() for layer in cache.layers)
    return {"ms": found, "cache": held, "ready_s": round(ready, 1)}


def main() -> None:
    """Time every side at every point with every attention, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", default="32x16384")
    parser.add_argument("--sides", default="teacher,x2,x4")
    parser.add_argument("--attention", default="sdpa,gqa,cudnn,flex")
    parser.add_argument("--shape", default="1b", choices=SHAPES)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--plain", action="store_true", help="without torch.compile")
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"device": name, **versions, "compiled": not options.plain}), flush=True)
    times: dict[tuple[str, str, str], float] = {}
    for side in options.sides.split(","):
        config = exported(side, options.shape)
        for chosen in options.attention.split(","):
            implementation, os.environ[FORCE] = ATTENTIONS[chosen]
            for kernel in ("flash", "mem_efficient", "math"):
                getattr(torch.backends.cuda, f"enable_{kernel}_sdp")(chosen != "cudnn")
            model = loaded(config, options.device, implementation)
            weights = sum(p.numel() * p.element_size() for p in model.parameters())
            for point in options.points.split(","):
                batch, context = map(int, point.split("x"))
                torch._dynamo.reset()
                about = {"side": side, "attention": chosen, "point": point}
                try:
                    found = timed(model, batch, context, options.steps, options.device, options.plain)
                except Exception as error:  # noqa: BLE001 - one side must not take the others' figures with it
                    print(json.dumps({**about, "error": repr(error)[:600]}), flush=True)
                    continue
                finally:
                    gc.collect(), torch.cuda.empty_cache()
                times[side, chosen, point] = found["ms"]
                against = times.get(("teacher", chosen, point))
                line = {
                    **about,
                    "ms": round(found["ms"], 3),
                    "tokens_per_s": round(batch / found["ms"] * 1e3),
                    "weights_MB": round(weights / 1e6),
                    "cache_MB": round(found["cache"] / 1e6, 1),
                    "ratio": None if against is None else round(against / found["ms"], 3),
                    "ready_s": found["ready_s"],
                }
                print(json.dumps(line), flush=True)
            del model
            gc.collect(), torch.cuda.empty_cache()
    for point in options.points.split(","):
        best = {
            side: min((ms for (one, _, where), ms in times.items() if (one, where) == (side, point)), default=None)
            for side in options.sides.split(",")
        }
        over = {
            side: round(best["teacher"] / ms, 3) for side, ms in best.items() if ms is not None and best.get("teacher")
        }
        print(json.dumps({"point": point, "best_ms": best, "best_over_best": over}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
