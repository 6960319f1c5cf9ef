"""Decode steps of caramba beside transformers' own, on one GPU: Llama-3.2-1B shape, bfloat16, random weights.

    python bench/decoding.py [--points 1x2048,32x2048,1x32768,32x16384] [--sides transformers,gqa,dba2,...] [--plain]
                             [--prefill 131072] [--shape 1b|tiny] [--steps 32]

A side is a model, with ``:int8`` or ``:int4`` behind it for a quantized cache, in blocks of 32 values or as many as
``:int8/64`` says.  Each line of JSON gives the
median ms a step (one token of every sequence), tokens/s, the bytes of weights and cache that a step reads,
what share of the device's measured copy speed that makes, and ``ratio``: tokens/s over those of the side before the
comma (``transformers`` for gqa, ``gqa`` for all others).  transformers decodes with a static cache and
``torch.compile(mode="reduce-overhead")``; caramba with :class:`Decoder`, compiled unless ``--plain``.  Caches hold
random values.  ``--prefill N`` takes N tokens in chunks and says peak memory beyond weights and cache.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import transformers
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_mla.attention import MultiHeadLatentAttention
from caramba_plugins_standard.decoding import Decoder
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.layers import LinearHead, RMSNorm, SwiGLU, TokenEmbedder
from caramba_plugins_standard.quantized import Int4, Int8
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.topologies import Nested, Residual, Stacked

from caramba_core.components import Attention, Constant, Given, Model, Storage
from caramba_core.lowering import lower
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel
from caramba_core.nn.module import ComponentModule

SHAPES: dict[str, dict[str, int]] = {
    "1b": {"vocabulary": 128256, "layers": 16, "width": 2048, "heads": 32, "groups": 8, "head": 64, "hidden": 8192},
    "tiny": {"vocabulary": 512, "layers": 2, "width": 128, "heads": 8, "groups": 2, "head": 16, "hidden": 256},
}
ROPE = Rope(theta=500000.0)
BITS: dict[str, type[Int8 | Int4]] = {"int8": Int8, "int4": Int4}


def cache_of(stored: str) -> Storage | None:
    """The cache of ``int8``, ``int4/64`` or nothing."""
    bits, _, block = stored.partition("/")
    return BITS[bits](**({"block": int(block)} if block else {})) if bits else None


def attention(side: str, shape: dict[str, int]) -> Attention:
    """The attention of a side; the number behind its name says by what the cache is divided."""
    heads = {"n_heads": shape["heads"], "n_kv_heads": shape["groups"], "head_dim": shape["head"], "rope": ROPE}
    cached = 2 * shape["groups"] * shape["head"]
    if side == "gqa":
        return GroupedQueryAttention(**heads)
    kept = cached // int(side[-1])
    if side.startswith("servable"):
        rotary = kept * 3 // 8 // 2 * 2
        sizes = {"sem_dim": kept // 2 - rotary, "geo_dim": rotary, "v_dim": kept // 2}
        return DecoupledBottleneckAttention(**heads, **sizes, layout="servable", geo_layout="shared")
    if side.startswith("mla"):
        rotary = min(shape["head"], kept // 4)
        return MultiHeadLatentAttention(**heads, rank=kept - rotary, rope_dim=rotary)
    pairs = 2 * shape["groups"]
    rotary = max(pairs, kept * 3 // 8 // pairs * pairs)
    content = kept * 3 // 16
    return DecoupledBottleneckAttention(**heads, sem_dim=content, geo_dim=rotary, v_dim=kept - content - rotary)


def ours(side: str, shape: dict[str, int], device: str = "cuda") -> LanguageModel:
    """A model of the shape with this attention in every layer."""
    block = (
        Residual(layers=(RMSNorm(), attention(side, shape))),
        Residual(layers=(RMSNorm(), SwiGLU(d_ff=shape["hidden"]))),
    )
    model = Model(
        head=LinearHead(),
        tied_embeddings=True,
        embedder=TokenEmbedder(vocab_size=shape["vocabulary"], d_model=shape["width"]),
        topology=Stacked(layers=(Nested(name="blocks", repeat=shape["layers"], layers=block), RMSNorm())),
    )
    built = build(lower(model), device=device, dtype=torch.bfloat16).eval().requires_grad_(False)
    for module in built.modules():
        if isinstance(module, ComponentModule):
            for name, weight in module.config.weights(module.width).items():
                tensor = getattr(module, name)
                if isinstance(weight.init, Given):
                    tensor.copy_(torch.tensor(weight.init.values).expand(weight.shape))
                elif isinstance(weight.init, Constant):
                    tensor.fill_(weight.init.value)
                else:
                    tensor.normal_(std=weight.init.std)
    return built


def theirs(shape: dict[str, int]) -> Any:
    """transformers' Llama of the shape."""
    config = transformers.LlamaConfig(
        vocab_size=shape["vocabulary"],
        hidden_size=shape["width"],
        intermediate_size=shape["hidden"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["groups"],
        head_dim=shape["head"],
        max_position_embeddings=131072,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE.theta},
        tie_word_embeddings=True,
    )
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.bfloat16)
    return model.to("cuda").eval().requires_grad_(False)


def milliseconds(step: Callable[[], object], count: int) -> float:
    """Median over ``count`` steps, each between two events; the first ones warm up."""
    for _ in range(5):
        step()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(one.elapsed_time(two) for one, two in pairwise(marks))


def copy_speed() -> float:
    """Bytes read and written a second by a copy of 4 GiB."""
    one = torch.randint(255, (2**32,), dtype=torch.uint8, device="cuda")
    other = torch.empty_like(one)
    return 2 * one.numel() / milliseconds(lambda: other.copy_(one), 10) * 1e3


def weight_bytes(model: Any) -> int:
    """Bytes of all parameters."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


@torch.no_grad()
def time_ours(
    model: LanguageModel, batch: int, context: int, storage: Storage | None, steps: int, plain: bool
) -> dict[str, Any]:
    """Steps at the end of a full cache of random values, and whether it takes as many bytes as the plan says."""
    began = time.perf_counter()
    decoder = Decoder(model, batch=batch, capacity=context, storage=storage, compiled=not plain)
    assert not decoder.unrecorded, decoder.unrecorded
    decoder.step(torch.zeros(batch, dtype=torch.int64, device="cuda"))
    ready = time.perf_counter() - began
    decoder.truncate(0)
    before = context - steps - 8
    for layer in decoder.cache.layers():
        for name, plane in layer.tensors.items():
            if plane.dtype == torch.uint8:
                plane.random_(0, 256)
            elif name.endswith(".blocks"):
                plane[..., 0].uniform_(0.005, 0.02), plane[..., 1].uniform_(-2.0, -1.0)
            else:
                plane.normal_()
    decoder.cache.advance(before)
    tokens = torch.randint(100, (batch,), device="cuda")

    def step() -> None:
        nonlocal tokens
        tokens = decoder.step(tokens).argmax(dim=-1)

    found = milliseconds(step, steps)
    planned = sum(
        (storage.bytes(e) if storage is not None and storage.quantizes(e) else 2 * e.values) * batch * context
        for layer in decoder.cache.layers()
        for e in layer.spec.values()
    )
    return {"ms": found, "cache": decoder.cache.bytes, "planned": planned, "ready_s": round(ready, 1)}


@torch.no_grad()
def time_theirs(model: Any, batch: int, context: int, steps: int) -> dict[str, Any]:
    """The same through a static cache."""
    began = time.perf_counter()
    cache = transformers.StaticCache(config=model.config, max_cache_len=context)
    tokens = torch.randint(100, (batch, 1), device="cuda")
    model(tokens, past_key_values=cache, use_cache=True)
    for layer in cache.layers:
        layer.keys.normal_(), layer.values.normal_(), layer.cumulative_length.fill_(context - steps - 8)
    forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)

    def step() -> None:
        nonlocal tokens
        torch.compiler.cudagraph_mark_step_begin()
        tokens = forward(tokens, past_key_values=cache, use_cache=True).logits[:, -1].argmax(dim=-1, keepdim=True)

    step(), step()
    ready = time.perf_counter() - began
    for layer in cache.layers:
        layer.cumulative_length.fill_(context - steps - 8)
    found = milliseconds(step, steps)
    held = sum(2 * layer.keys.numel() * layer.keys.element_size() for layer in cache.layers)
    return {"ms": found, "cache": held, "planned": held, "ready_s": round(ready, 1)}


@torch.no_grad()
def prefill(model: LanguageModel, tokens: int, chunk: int) -> dict[str, Any]:
    """Chunks through a cache beside one pass over all tokens without one."""
    ids = torch.randint(100, (1, tokens), device="cuda")
    weights = torch.cuda.memory_allocated()
    decoder = Decoder(model, batch=1, capacity=tokens + 1)
    decoder.prefill(ids[:, : 4 * chunk], chunk=chunk)
    decoder.truncate(0)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    decoder.prefill(ids, chunk=chunk)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    beyond = torch.cuda.max_memory_allocated() - weights - decoder.cache.bytes
    del decoder
    gc.collect(), torch.cuda.empty_cache()
    model.hidden(ids[:, : 4 * chunk])
    torch.cuda.synchronize()
    began = time.perf_counter()
    model.logits(model.hidden(ids)[:, -1])
    torch.cuda.synchronize()
    whole = time.perf_counter() - began
    return {
        "seconds": round(seconds, 3),
        "whole_pass_s": round(whole, 3),
        "ratio": round(whole / seconds, 3),
        "GiB_beyond": round(beyond / 2**30, 2),
    }


def main() -> None:
    """Time every side at every point and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", default="1x2048,32x2048,1x32768,32x16384")
    parser.add_argument("--sides", default="transformers,gqa,gqa:int8,gqa:int4,dba2,dba4,mla2")
    parser.add_argument("--shape", default="1b", choices=SHAPES)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--plain", action="store_true", help="record the steps without compiling them")
    parser.add_argument("--prefill", type=int, default=0, help="take so many tokens in chunks instead")
    parser.add_argument("--chunk", type=int, default=2048)
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    speed = copy_speed()
    machine = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "copy_TBs": round(speed / 1e12, 2),
        "plain": options.plain,
    }
    print(json.dumps(machine), flush=True)
    times: dict[tuple[str, str], float] = {}
    for side in options.sides.split(","):
        name, _, stored = side.partition(":")
        model = theirs(shape) if name == "transformers" else ours(name, shape)
        if options.prefill:
            line = {
                "side": side,
                "prefill": options.prefill,
                "chunk": options.chunk,
                **prefill(model, options.prefill, options.chunk),
            }
            print(json.dumps(line), flush=True)
            continue
        for point in options.points.split(","):
            batch, context = map(int, point.split("x"))
            torch._dynamo.reset()
            gc.collect(), torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            base = torch.cuda.memory_allocated()
            try:
                if name == "transformers":
                    found = time_theirs(model, batch, context, options.steps)
                else:
                    found = time_ours(model, batch, context, cache_of(stored), options.steps, options.plain)
            except torch.OutOfMemoryError as error:
                print(json.dumps({"side": side, "point": point, "error": str(error).splitlines()[0]}), flush=True)
                continue
            except Exception as error:  # noqa: BLE001 - one side must not take the others' figures with it
                print(json.dumps({"side": side, "point": point, "error": repr(error)[:600]}), flush=True)
                continue
            read = weight_bytes(model) + found["cache"]
            times[side, point] = found["ms"]
            against = times.get(("transformers" if side == "gqa" else "gqa", point))
            line = {
                "side": side,
                "point": point,
                "ms": round(found["ms"], 3),
                "tokens_per_s": round(batch / found["ms"] * 1e3),
                "weights_MB": round(weight_bytes(model) / 1e6),
                "cache_MB": round(found["cache"] / 1e6),
                "cache_as_planned": found["cache"] == found["planned"],
                "bandwidth_share": round(read / (found["ms"] / 1e3) / speed, 3),
                "ratio": None if against is None else round(against / found["ms"], 3),
                "ready_s": found["ready_s"],
                "peak_MB_beyond": round((torch.cuda.max_memory_allocated() - base - found["cache"]) / 1e6),
            }
            print(json.dumps(line), flush=True)
        del model
        gc.collect(), torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
