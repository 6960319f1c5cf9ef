"""Training on documents that share sequences: blocks of flex_attention beside a mask, and beside no documents at all.

    python bench/documents.py [--device cuda] [--batch 16] [--tokens 2048] [--layers 30] [--compile] [--attention dba]

The shape of SmolLM2-135M with random weights, bfloat16 on CUDA, documents of 100 to 1,000 tokens.  Each line of JSON
gives the median seconds of a step (forward, chunked cross entropy, backward), tokens a second and the most memory that
was allocated; the last one how far losses and gradients of the two ways lie apart, relative to the largest gradient of
each parameter.  On a CPU, where the library has no gradients in blocks, only the forward pass is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.layers import LinearHead, RMSNorm, SwiGLU, TokenEmbedder
from caramba_plugins_standard.marks import BEGINS
from caramba_plugins_standard.pretrain import Pretrain
from caramba_plugins_standard.pretrain_runner import PretrainRunner
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.topologies import Nested, Residual, Stacked
from caramba_plugins_standard.training.batch import Batch, batches_of
from caramba_plugins_standard.training.compiling import compile_blocks
from caramba_plugins_standard.training.documents import packed_frame
from torch import Tensor

from caramba_core.components import Attention, Model
from caramba_core.lowering import lower
from caramba_core.nn.build import build
from caramba_core.nn.frame import Frame, Taps
from caramba_core.nn.language_model import LanguageModel

WAYS = ("blocks", "mask", "none")


class Packed(Batch):
    """A batch whose documents are kept apart in one way."""

    in_blocks: bool

    def frame(self, model: LanguageModel, *, taps: Taps | None = None) -> Frame:
        """The frame in blocks, or with masks."""
        assert self.begins is not None
        return packed_frame(model, self.inputs, self.begins[:, :-1], taps=taps, in_blocks=self.in_blocks)


class InBlocks(Packed):
    """In blocks."""

    in_blocks = True


class Masked(Packed):
    """With a mask."""

    in_blocks = False


def model_of(options: argparse.Namespace) -> LanguageModel:
    """Random weights, the shape of SmolLM2-135M."""
    attention: Attention = GroupedQueryAttention(n_heads=9, n_kv_heads=3, head_dim=64, rope=Rope(theta=100000.0))
    if options.attention == "dba":
        attention = DecoupledBottleneckAttention(
            n_heads=9, n_kv_heads=3, head_dim=64, sem_dim=36, geo_dim=72, v_dim=84, rope=Rope(theta=100000.0)
        )
    block = (Residual(layers=(RMSNorm(), attention)), Residual(layers=(RMSNorm(), SwiGLU(d_ff=1536))))
    model = Model(
        head=LinearHead(),
        tied_embeddings=True,
        embedder=TokenEmbedder(vocab_size=options.vocabulary, d_model=576),
        topology=Stacked(layers=(Nested(name="blocks", repeat=options.layers, layers=block), RMSNorm())),
    )
    return build(lower(model), seed=0).to(options.device)


def words_of(options: argparse.Namespace) -> Tensor:
    """Ids with marks, int64 ``[1, B, T + 1]``: documents of 100 to 1,000 tokens."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(options.vocabulary, (options.batch, options.tokens + 1), generator=generator)
    for row in words:
        place = 0
        while (place := place + int(torch.randint(100, 1001, (), generator=generator))) < len(row):
            row[place] |= BEGINS
    return words[None].to(options.device)


def batch_of(way: str, words: Tensor) -> Batch:
    """The pass in one way."""
    [found] = batches_of(words, marked=True)
    if way == "none":
        return Batch(tokens=found.tokens)
    kind = InBlocks if way == "blocks" else Masked
    return kind(tokens=found.tokens, begins=found.begins, learned=found.learned, step_targets=found.step_targets)


def main() -> None:
    """Measure each way in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--attention", default="gqa", choices=("gqa", "dba"))
    for name, value in (("batch", 16), ("tokens", 2048), ("layers", 30), ("vocabulary", 49152), ("repeats", 10)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    on_cuda = options.device.startswith("cuda")
    model, words = model_of(options), words_of(options)
    autocast: Any = (lambda: torch.autocast("cuda", torch.bfloat16)) if on_cuda else nullcontext
    context: Any = SimpleNamespace(student=model, autocast=autocast)
    runner = PretrainRunner(Pretrain(), context)
    runner.prepare()
    if options.compile:
        compile_blocks(model)

    def step(way: str) -> Tensor:
        batch = batch_of(way, words)
        if on_cuda:
            model.zero_grad(set_to_none=True)
            return runner.step(batch).loss
        with torch.no_grad():
            logits: Tensor = model(batch.inputs, batch.frame(model))
            return logits.float().square().mean()

    def synchronize() -> None:
        if on_cuda:
            torch.cuda.synchronize()

    losses, gradients = {}, {}
    for way in WAYS:
        for _ in range(3):
            losses[way] = step(way).item()
        if on_cuda:
            gradients[way] = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(options.repeats):
            synchronize()
            began = time.perf_counter()
            step(way)
            synchronize()
            times.append(time.perf_counter() - began)
        seconds = statistics.median(times)
        line: dict[str, Any] = {"way": way, "attention": options.attention, "seconds": round(seconds, 5)}
        line["tokens_per_second"] = round(options.batch * options.tokens / seconds)
        if on_cuda:
            line["GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        print(json.dumps(line), flush=True)
    pairs = zip(gradients.get("blocks", []), gradients.get("mask", []), strict=True)
    apart = [((a - b).abs().max() / b.abs().max()).item() for a, b in pairs]
    print(
        json.dumps(
            {"loss_blocks": losses["blocks"], "loss_mask": losses["mask"], "gradients_apart": max(apart, default=None)}
        )
    )


if __name__ == "__main__":
    main()
