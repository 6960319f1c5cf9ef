"""Training speed on one GPU beside transformers and a model written by hand, as JSON lines.

    python bench/training.py [--cases caramba,transformers_bf16,...] [--batches 8,16] [--steps 14]
    python bench/training.py --shape tiny --device cpu --steps 5 --batches 2

Every case takes whole training steps of random tokens: forward, cross entropy, backward, the norm clipped at 1, fused
AdamW, bfloat16 computation.  A line has the median seconds of the steps behind the warm-up, tokens/s, peak memory, and
the share of the measured peak of bfloat16 products (of the operations that the model needs, none counted twice).

``caramba`` runs a manifest through :class:`~caramba_core.run.experiment.Experiment`, with its data, loop and log; it is
left behind its last step, where it would write a checkpoint.  ``transformers_bf16`` and ``transformers_float32`` are
``LlamaForCausalLM`` under ``torch.compile``, with weights in bfloat16, and in float32 under autocast; it is kept
from making a mask, which only causality would need.  ``by_hand`` is the model in this file, in float32 under autocast,
compiled.  These three read windows of the same array by a plain loop that copies them from pinned memory.

``distil``: ``upcycle.global`` of the DBA student beside ``finetune`` of the same parameters; ``blockwise``:
``upcycle.blockwise`` of all blocks beside the teacher's trunk alone; ``sizes``: sizes by layer beside uniform ones of
as many values, in SmolLM2-135M's shape, as CUDA graphs.  ``float8``: ``caramba`` in 8 bits, and the last losses of
SmolLM2-135M's shape in both types, drawn anew and trained on ``--data``.  ``parts``: what a step is made of, each
alone, in several ways; ``kernels``: which ones take a step's time.  The last line gathers the ratios.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from caramba_terminal.reporter import Reporter
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from caramba_core.manifest.load import load_manifest
from caramba_core.run.context import RunContext
from caramba_core.run.experiment import Experiment

SHAPES: dict[str, dict[str, int]] = {
    "1b": {"vocabulary": 128256, "layers": 16, "width": 2048, "heads": 32, "groups": 8, "head": 64, "hidden": 8192},
    "135m": {"vocabulary": 49152, "layers": 30, "width": 576, "heads": 9, "groups": 3, "head": 64, "hidden": 1536},
    "tiny": {"vocabulary": 512, "layers": 3, "width": 64, "heads": 4, "groups": 2, "head": 16, "hidden": 128},
}
CACHED = {
    "1b": {"sem_dim": 96, "geo_dim": 192, "v_dim": 224},
    "135m": {"sem_dim": 20, "geo_dim": 36, "v_dim": 40},
    "tiny": {"sem_dim": 8, "geo_dim": 16, "v_dim": 16},
}
THETA = 500000.0
ROWS = {"logit_rows": 4096}
CASES = (
    *("parts", "caramba", "by_hand", "float8", "distil", "blockwise", "sizes"),
    *("transformers_bf16", "transformers_float32"),
)


class Left(Exception):  # noqa: N818
    """A run is left where it would write its checkpoint."""


class Bench:
    """What the cases share: shape, device, data, and what was measured so far."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.shape: str = arguments.shape
        self.small = "tiny" if self.shape == "tiny" else "135m"
        self.context: int = arguments.context or (2048 if self.shape == "1b" else 64)
        self.device = torch.device(arguments.device)
        self.cuda = self.device.type == "cuda"
        self.steps: int = arguments.steps
        self.warm_up = min(5, self.steps - 2)
        self.batches: list[int] = [int(batch) for batch in arguments.batches.split(",")]
        self.theirs: list[int] = [int(batch) for batch in (arguments.their_batches or arguments.batches).split(",")]
        self.loss_steps: int = arguments.loss_steps if self.cuda else 20
        self.overrides: dict[str, Any] = json.loads(arguments.train)
        self.traced = False
        self.folder = folder
        self.found: dict[str, dict[str, float]] = {}
        self.peak = self._peak()
        generator = np.random.default_rng(0)
        count = (self.steps + 1) * max([*self.batches, *self.theirs, 16]) * self.context + 1
        for shape in {self.shape, self.small}:
            ids = generator.integers(SHAPES[shape]["vocabulary"], size=count, dtype=np.uint32)
            if shape == self.small:  # something to learn: real ids, or else few that come in an order
                ids = (
                    np.load(arguments.data) % SHAPES[shape]["vocabulary"]
                    if arguments.data
                    else ids % 7 + np.arange(count) % 50
                )
            np.save(folder / f"{shape}.npy", ids)

    def say(self, **record: Any) -> None:
        """One JSON line."""
        print(json.dumps(record), flush=True)

    def _peak(self) -> float:
        """Operations per second of bfloat16 products of random values, 8,192 wide."""
        width = 8192 if self.cuda else 512
        a, b = (torch.randn(width, width, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        return 2 * width**3 / self.seconds(lambda: a @ b, repeats=30)

    def seconds(self, work: Callable[[], object], repeats: int = 10) -> float:
        """Median seconds of a call, behind three others."""
        for _ in range(3):
            work()
        if not self.cuda:
            times = []
            for _ in range(min(repeats, 3)):
                began = time.perf_counter()
                work()
                times.append(time.perf_counter() - began)
            return statistics.median(times)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        events[0].record()
        for event in events[1:]:
            work()
            event.record()
        torch.cuda.synchronize()
        return statistics.median(a.elapsed_time(b) for a, b in pairwise(events)) / 1000

    def forget(self) -> None:
        """Free what a case held, and its compiled graphs."""
        torch.compiler.reset()
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def record(self, case: str, batch: int, median: float, shape: str, context: int, **more: Any) -> None:
        """Say what a case took, and keep its tokens/s."""
        rate = batch * context / median
        gib = round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.cuda else None
        share = round(rate * operations(shape, context) / self.peak, 3)
        if not self.traced:
            self.found.setdefault(case, {})[str(batch)] = rate
        self.say(
            case=case,
            batch=batch,
            context=context,
            seconds=round(median, 4),
            tokens_per_second=round(rate),
            peak_gib=gib,
            share_of_peak=share,
            **more,
        )

    def median(self, times: list[float]) -> float:
        """Of the differences of times at the ends of steps, without those of the warm-up."""
        differences = [after - before for before, after in pairwise(times)]
        return statistics.median(differences[self.warm_up - 1 :])

    def attempt(self, case: str, batch: int, work: Callable[[], None]) -> None:
        """A case that may not fit."""
        self.forget()
        try:
            work()
        except Exception as error:  # noqa: BLE001 - the other cases count, too
            said = f"{type(error).__name__}: {error}"
            self.say(case=case, batch=batch, failed=said[:600])
        self.forget()


def operations(shape: str, context: int) -> float:
    """Of a training step per token: six per weight of a product, and causal attention's."""
    s = SHAPES[shape]
    attention = s["width"] * s["head"] * (2 * s["heads"] + 2 * s["groups"])
    weights = s["layers"] * (attention + 3 * s["width"] * s["hidden"]) + s["vocabulary"] * s["width"]
    return 6 * weights + 6 * s["layers"] * s["heads"] * s["head"] * context


# ------------------------------------------------------------------------------------------------ caramba


def manifest(shape: str, attention: dict[str, Any], *, repeat: dict[str, Any] | None = None) -> dict[str, Any]:
    """A Llama of this shape with an attention."""
    s = SHAPES[shape]
    heads = {"n_heads": s["heads"], "n_kv_heads": s["groups"], "head_dim": s["head"], "rope": {"theta": THETA}}
    norm = {"type": "rms_norm", "eps": 1e-5}
    block = [
        {"type": "residual", "layers": [norm, {**heads, **attention}]},
        {"type": "residual", "layers": [norm, {"type": "swiglu", "d_ff": s["hidden"]}]},
    ]
    blocks = {"type": "nested", "name": "blocks", "repeat": s["layers"], "layers": block, **(repeat or {})}
    return {
        "version": 1,
        "name": "training",
        "model": {
            "type": "transformer",
            "tied_embeddings": True,
            "embedder": {"type": "token", "vocab_size": s["vocabulary"], "d_model": s["width"]},
            "topology": {"type": "stacked", "layers": [blocks, norm]},
        },
    }


def caramba(
    bench: Bench,
    case: str,
    batch: int,
    shape: str,
    document: dict[str, Any],
    strategy: dict[str, Any],
    *,
    trains: list[str] | None = None,
    more_train: dict[str, Any] | None = None,
    teacher: Path | None = None,
    context: int | None = None,
    then: Callable[[RunContext], dict[str, Any]] | None = None,
) -> None:
    """A run through the platform's own loop."""
    context = context or bench.context
    train = {
        "strategy": strategy,
        "trains": trains or ["*"],
        "device": bench.device.type,
        "dtype": "bfloat16",
        "batch_size": batch,
        "context": context,
        "lr": 1e-4,
        "checkpoint_minutes": None,
        **(more_train or {}),
        **bench.overrides,
    }
    group: dict[str, Any] = {"name": "group", "data": {"train": str(bench.folder / f"{shape}.npy")}}
    if teacher is not None:
        group["teacher"] = {"source": str(teacher), "dtype": "bfloat16"}
    group["runs"] = [{"id": "run", "mode": "train", "seed": 1, "steps": bench.steps, "train": train}]
    file = bench.folder / "manifest.json"
    file.write_text(json.dumps({**document, "groups": [group]}))
    more: dict[str, Any] = {}

    def leave(self: RunContext, *_: object, **__: object) -> None:
        if then is not None:
            more.update(then(self))
        raise Left

    def run() -> None:
        with tempfile.TemporaryDirectory(dir=bench.folder) as output:
            reporter = Reporter(Console(file=sys.stderr))
            experiment = Experiment(load_manifest(str(file), fetch=True), output=Path(output), reporter=reporter)
            saves, stops = RunContext.save, RunContext.should_stop
            RunContext.save = leave  # type: ignore[assignment,method-assign]
            try:
                with traced(bench, case) as behind_step:
                    RunContext.should_stop = lambda self: behind_step() or stops(self)  # type: ignore[func-returns-value,method-assign]
                    with suppress(Left):
                        experiment.complete()
            finally:
                RunContext.save, RunContext.should_stop = saves, stops  # type: ignore[method-assign]
            lines = (Path(output) / "training" / "group" / "run" / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        ends = [record["seconds"] for record in records]
        losses = {"first_loss": round(records[0]["loss"], 4), "last_loss": mean_of_last(records)}
        median = bench.median(ends)
        bench.record(case, batch, median, shape, context, first_step=ends[0], **losses, **more)

    bench.attempt(case, batch, run)


def kernels(bench: Bench) -> None:
    """What takes the time of a step of ``caramba``, ``by_hand`` and ``distil``: milliseconds a step by kernel."""
    batch, steps = max(bench.batches), bench.steps
    bench.steps, bench.traced = 9, True
    for work in (pretraining, by_hand, distilling):
        bench.batches = [batch]
        work(bench)
    bench.steps, bench.traced = steps, False


@contextmanager
def traced(bench: Bench, case: str) -> Iterator[Callable[[], None]]:
    """What is called behind each step: the last four are traced."""
    if not bench.traced:
        yield lambda: None
        return
    profile = torch.profiler.profile(
        activities=list(torch.profiler.supported_activities()),
        schedule=torch.profiler.schedule(wait=bench.steps - 6, warmup=1, active=4),
    )
    with profile:
        yield profile.step
        if bench.cuda:
            torch.cuda.synchronize()
    where = torch.autograd.DeviceType.CUDA if bench.cuda else torch.autograd.DeviceType.CPU
    events = [event for event in profile.key_averages() if event.device_type == where]
    taken = {event: event.self_device_time_total if bench.cuda else event.self_cpu_time_total for event in events}
    bench.say(kernels=case, ms=round(sum(taken.values()) / 4000, 2))
    for event in sorted(events, key=lambda event: -taken[event])[:28]:
        bench.say(kernel=event.key[:110], ms=round(taken[event] / 4000, 2), calls=event.count / 4)


def mean_of_last(records: list[dict[str, Any]]) -> float:
    """The mean loss of the last tenth of the steps."""
    return round(statistics.fmean(record["loss"] for record in records[-max(1, len(records) // 10) :]), 4)


def pretraining(bench: Bench) -> None:
    """The model of the shape, all of it trained."""
    for batch in bench.batches:
        document = manifest(bench.shape, {"type": "gqa"})
        caramba(bench, "caramba", batch, bench.shape, document, {"type": "pretrain", **ROWS})


def float8(bench: Bench) -> None:
    """The same in 8-bit floats, and how far the losses of a smaller model are apart behind as many tokens."""
    document = manifest(bench.shape, {"type": "gqa"})
    more = {"float8": True}
    caramba(bench, "float8", max(bench.batches), bench.shape, document, {"type": "pretrain", **ROWS}, more_train=more)
    document, steps = manifest(bench.small, {"type": "gqa"}), bench.steps
    bench.steps = bench.loss_steps
    for case, settings in (("loss_bf16", {}), ("loss_float8", more)):
        train = {"lr": 1e-3, "schedule": {"type": "cosine", "warmup": 20}, **settings}
        context = bench.context // 2
        caramba(bench, case, 8, bench.small, document, {"type": "pretrain"}, more_train=train, context=context)
    bench.steps = steps


def written_teacher(bench: Bench, shape: str) -> Path:
    """A checkpoint of random weights in bfloat16."""
    import transformers

    folder = bench.folder / f"teacher_{shape}"
    if not folder.exists():
        with torch.device(bench.device):
            model = transformers.LlamaForCausalLM(llama_config(shape)).to(torch.bfloat16)
        model.save_pretrained(folder)
    return folder


def distilling(bench: Bench) -> None:
    """All that the preset trains, with and without the teacher."""
    teacher, trains = written_teacher(bench, bench.shape), ["attention", "norm", "mlp"]
    document = manifest(bench.shape, {"type": "dba", **CACHED[bench.shape], "o_bias": True})
    for case, strategy in (("finetune", {"type": "finetune", **ROWS}), ("distil", {"type": "upcycle.global", **ROWS})):
        batch = min(bench.batches)
        caramba(bench, case, batch, bench.shape, document, strategy, trains=trains, teacher=teacher)


def blockwise(bench: Bench) -> None:
    """All attentions learn from the teacher's, beside a pass of the teacher's trunk."""
    document = manifest(bench.shape, {"type": "dba", **CACHED[bench.shape], "o_bias": True})
    batch = min(bench.batches)
    ids = torch.randint(SHAPES[bench.shape]["vocabulary"], (batch, bench.context), device=bench.device)

    def trunk(context: RunContext) -> dict[str, Any]:
        @torch.no_grad()
        def work() -> None:
            with context.autocast():
                context.teacher.hidden(ids)

        context.teacher.tap([])
        taken = bench.seconds(work)
        bench.found["trunk"] = {str(batch): batch * bench.context / taken}
        return {"trunk_seconds": round(taken, 4)}

    strategy, teacher = {"type": "upcycle.blockwise"}, written_teacher(bench, bench.shape)
    caramba(
        bench,
        "blockwise",
        batch,
        bench.shape,
        document,
        strategy,
        trains=["attention"],
        teacher=teacher,
        then=trunk,
    )


def sizes_by_layer(bench: Bench) -> None:
    """Sizes around the uniform ones, so that both have as many values."""
    shape, layers = bench.small, SHAPES[bench.small]["layers"]
    teacher, cached, context = written_teacher(bench, shape), CACHED[shape], bench.context // 2
    semantic = [cached["sem_dim"] + 4 * (index % 5 - 2) for index in range(layers)]
    values = [cached["v_dim"] + 2 * (index // 5 % 5 - 2) + (index % 2 or -1) for index in range(layers)]
    each = {"each": {"attention.sem_dim": semantic, "attention.v_dim": values}}
    for case, repeat in (("uniform", {}), ("sizes", each)):
        document = manifest(shape, {"type": "dba", **cached, "o_bias": True}, repeat=repeat)
        caramba(
            bench,
            case,
            min(bench.batches),
            shape,
            document,
            {"type": "upcycle.global", **ROWS},
            trains=["attention", "norm", "mlp"],
            teacher=teacher,
            context=context,
            more_train={"cuda_graph": bench.cuda},
        )


# ------------------------------------------------------------------------------------------------ the others


def windows(bench: Bench, batch: int) -> Iterator[Tensor]:
    """int64 ``[B, T + 1]`` on the device."""
    ids = np.load(bench.folder / f"{bench.shape}.npy", mmap_mode="r")
    for first in range(0, bench.steps * batch, batch):
        rows = [ids[(first + row) * bench.context :][: bench.context + 1] for row in range(batch)]
        tokens = torch.from_numpy(np.stack(rows).astype(np.int64))
        yield (tokens.pin_memory() if bench.cuda else tokens).to(bench.device, non_blocking=True)


def plain_loop(bench: Bench, case: str, batch: int, model: nn.Module, loss_of: Callable[[Tensor], Tensor]) -> None:
    """Steps of a model; the loss of each step is read one step late, as caramba does."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=bench.device.type in ("cpu", "cuda")
    )
    ends, losses, pending = [], [], None
    began = time.perf_counter()
    with traced(bench, case) as behind_step:
        for tokens in windows(bench, batch):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(tokens)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if pending is not None:
                losses.append(pending.item())
                ends.append(time.perf_counter() - began)
            pending = loss.detach()
            behind_step()
    if bench.cuda:
        torch.cuda.synchronize()
    ends.append(time.perf_counter() - began)
    first = {"first_step": round(ends[0], 3), "first_loss": round(losses[0], 4), "last_loss": round(losses[-1], 4)}
    bench.record(case, batch, bench.median(ends), bench.shape, bench.context, **first)


def llama_config(shape: str) -> Any:
    """transformers' configuration of a shape."""
    import transformers

    s = SHAPES[shape]
    return transformers.LlamaConfig(
        vocab_size=s["vocabulary"],
        hidden_size=s["width"],
        intermediate_size=s["hidden"],
        num_hidden_layers=s["layers"],
        num_attention_heads=s["heads"],
        num_key_value_heads=s["groups"],
        head_dim=s["head"],
        rms_norm_eps=1e-5,
        rope_theta=THETA,
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="sdpa",
    )


def theirs(bench: Bench, dtype: torch.dtype) -> None:
    """transformers' model, compiled whole for static shapes."""
    import transformers
    from transformers.models.llama import modeling_llama

    # traced, it cannot see that no sequences are packed, and would make a mask: torch would leave the flash kernels
    modeling_llama.create_causal_mask = lambda *_, **__: None
    case = "transformers_bf16" if dtype == torch.bfloat16 else "transformers_float32"
    narrow = dtype == torch.bfloat16
    for batch in bench.theirs:

        def run(batch: int = batch) -> None:
            with torch.device(bench.device):
                model: nn.Module = transformers.LlamaForCausalLM(llama_config(bench.shape))
            model.to(dtype).train()
            compiled = torch.compile(model, dynamic=False) if bench.cuda else model

            def loss_of(tokens: Tensor) -> Tensor:
                inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
                with nullcontext() if narrow else torch.autocast(bench.device.type, dtype=torch.bfloat16):
                    loss: Tensor = compiled(inputs, labels=inputs, shift_labels=targets).loss
                return loss

            plain_loop(bench, case, batch, model, loss_of)

        bench.attempt(case, batch, run)


class Block(nn.Module):
    """A block of the hand-written model."""

    def __init__(self, shape: str) -> None:
        super().__init__()
        s = SHAPES[shape]
        self.heads, self.groups, width = s["heads"], s["groups"], s["width"]
        self.queries, self.keys = s["heads"] * s["head"], s["groups"] * s["head"]
        self.norm, self.mlp_norm = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
        self.qkv = nn.Linear(width, self.queries + 2 * self.keys, bias=False)
        self.out = nn.Linear(self.queries, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * s["hidden"], bias=False)
        self.down = nn.Linear(s["hidden"], width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        q, k, v = self.qkv(self.norm(x)).split([self.queries, self.keys, self.keys], dim=-1)
        q, k, v = (each.unflatten(-1, (count, -1)).transpose(1, 2) for each, count in self._heads(q, k, v))
        q, k = (turned(each, cos, sin) for each in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)

    def _heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[tuple[Tensor, int], ...]:
        return (q, self.heads), (k, self.groups), (v, self.groups)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x`` ``[B, H, T, d]`` by its positions."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class ByHand(nn.Module):
    """A Llama in one file, as one would write it for training."""

    def __init__(self, shape: str, context: int) -> None:
        super().__init__()
        s = SHAPES[shape]
        self.embedder = nn.Embedding(s["vocabulary"], s["width"])
        self.blocks = nn.ModuleList(Block(shape) for _ in range(s["layers"]))
        self.norm = nn.RMSNorm(s["width"], eps=1e-5)
        nn.init.normal_(self.embedder.weight, std=0.02)
        frequencies = THETA ** (-torch.arange(0, s["head"], 2) / s["head"])
        angles = torch.arange(context)[:, None] * frequencies
        self.cos, self.sin = nn.Buffer(angles.cos()), nn.Buffer(angles.sin())

    def forward(self, tokens: Tensor) -> Tensor:
        """The mean loss of int64 ``[B, T + 1]``."""
        x = self.embedder(tokens[:, :-1]).bfloat16()
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.embedder.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def by_hand(bench: Bench) -> None:
    """The model in this file, whole in one compiled graph."""
    for batch in bench.batches:

        def run(batch: int = batch) -> None:
            with torch.device(bench.device):
                model = ByHand(bench.shape, bench.context)
            compiled = torch.compile(model, dynamic=False) if bench.cuda else model

            def loss_of(tokens: Tensor) -> Tensor:
                with torch.autocast(bench.device.type, dtype=torch.bfloat16):
                    loss: Tensor = compiled(tokens)
                return loss

            plain_loop(bench, "by_hand", batch, model, loss_of)

        bench.attempt("by_hand", batch, run)


# ------------------------------------------------------------------------------------------------ parts


def parts(bench: Bench) -> None:
    """What a step of the largest batch is made of, each alone, forward and backward, in milliseconds."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    s, batch = SHAPES[bench.shape], max(bench.batches)
    rows = batch * bench.context

    def drawn(*size: int, grad: bool = True) -> Tensor:
        return torch.randn(*size, device=bench.device, dtype=torch.bfloat16).mul_(0.02).requires_grad_(grad)

    def timed(name: str, forward: Callable[[], Tensor], inputs: list[Tensor], operations: float) -> None:
        try:
            gradient = torch.randn_like(forward())

            def both() -> None:
                for tensor in inputs:
                    tensor.grad = None
                forward().backward(gradient)

            with torch.no_grad():
                ahead = bench.seconds(forward)
            taken = bench.seconds(both)
            bench.say(
                part=name,
                forward_ms=round(1000 * ahead, 3),
                both_ms=round(1000 * taken, 3),
                share=round(operations / taken / bench.peak, 3),
            )
        except Exception as error:  # noqa: BLE001
            bench.say(part=name, failed=f"{type(error).__name__}: {error}"[:300])

    width, queries, keys, hidden = s["width"], s["heads"] * s["head"], s["groups"] * s["head"], s["hidden"]
    for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION") if bench.cuda else ("MATH",):
        for key, value in ((s["head"], s["head"]), (120, 120), (128, 128), (120, 64), (128, 64)):
            q, k, v = (
                drawn(batch, bench.context, count, size, grad=False).transpose(1, 2).requires_grad_()
                for count, size in ((s["heads"], key), (s["groups"], key), (s["groups"], value))
            )

            def attend(backend: str = backend, q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
                with sdpa_kernel([getattr(SDPBackend, backend)]):
                    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

            attention = (2 * key + 1.5 * value) * 2 * batch * s["heads"] * bench.context**2
            timed(f"attention {backend} {key}/{value}", attend, [q, k, v], attention)
            del q, k, v
    x = drawn(rows, width)
    for name, outs in (
        ("qkv", [queries + 2 * keys]),
        ("q, k, v", [queries, keys, keys]),
        ("gate_up", [2 * hidden]),
        ("gate, up", [hidden, hidden]),
    ):
        weights = [drawn(out, width) for out in outs]

        def project(weights: list[Tensor] = weights) -> Tensor:
            return (
                torch.cat([F.linear(x, weight) for weight in weights], dim=-1)
                if len(weights) > 1
                else F.linear(x, weights[0])
            )

        timed(name, project, [x, *weights], 6 * rows * width * sum(outs))
    h, down = drawn(rows, hidden), drawn(width, hidden)
    timed("down", lambda h=h, down=down: F.linear(h, down), [h, down], 6 * rows * width * hidden)
    del h, down
    parts_of_head(bench, x, min(rows, 16384))
    weights = [nn.Parameter(torch.randn(2**27 if bench.cuda else 2**16, device=bench.device)) for _ in range(8)]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)
    for name, work in (
        ("AdamW of 2^30", optimizer.step),
        ("clip of 2^30", lambda: nn.utils.clip_grad_norm_(weights, 1.0)),
        ("cast of 2^30", lambda: [weight.detach().bfloat16() for weight in weights]),
    ):
        bench.say(part=name, ms=round(1000 * bench.seconds(work), 3))


def parts_of_head(bench: Bench, x: Tensor, rows: int) -> None:
    """The products of the head, and the loss between them."""
    s = SHAPES[bench.shape]
    x = x.detach()[:rows]
    weight = torch.randn(s["vocabulary"], s["width"], device=bench.device, dtype=torch.bfloat16) * 0.02
    for chunk in (2048, 4096, 8192, 16384) if bench.cuda else (64,):
        part = x[:chunk]
        logits = F.linear(part, weight)
        total = torch.zeros(s["vocabulary"], s["width"], device=bench.device)
        products: dict[str, Callable[[], object]] = {
            "logits": lambda part=part: F.linear(part, weight),
            "to hidden": lambda logits=logits: logits @ weight,
            "to weight, bfloat16": lambda logits=logits, part=part: logits.T @ part,
            "to weight, added": lambda logits=logits, part=part, total=total: total.add_(logits.T @ part),
            "to weight, added by addmm": lambda logits=logits, part=part, total=total: torch.addmm(
                total, logits.T, part, out_dtype=torch.float32, out=total
            ),
        }
        for name, work in products.items():
            try:
                taken = bench.seconds(work)
                share = 2 * chunk * weight.numel() / taken / bench.peak
                bench.say(part=f"head, {name}", rows=chunk, ms=round(1000 * taken, 3), share=round(share, 3))
            except Exception as error:  # noqa: BLE001
                bench.say(part=f"head, {name}", rows=chunk, failed=f"{type(error).__name__}: {error}"[:300])


# ------------------------------------------------------------------------------------------------ all together


def main() -> None:
    """Run the cases and say the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--shape", default="1b", choices=SHAPES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batches", default="8,16")
    parser.add_argument("--their-batches", help="of transformers, which takes a minute to compile for each")
    parser.add_argument("--context", type=int)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--data", help="a token array for the losses of float8")
    parser.add_argument("--loss-steps", type=int, default=300)
    parser.add_argument("--no-cudnn", action="store_true", help="attention by torch's own choice of kernels")
    parser.add_argument("--train", default="{}", help="more keys of caramba's train:, as JSON")
    arguments = parser.parse_args()
    torch.backends.cuda.enable_cudnn_sdp(not arguments.no_cudnn)
    chosen = arguments.cases.split(",")
    if unknown := set(chosen) - {*CASES, "kernels"}:
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}, kernels")
    torch.manual_seed(0)
    work: dict[str, Callable[[Bench], None]] = {
        "parts": parts,
        "caramba": pretraining,
        "by_hand": by_hand,
        "float8": float8,
        "kernels": kernels,
        "distil": distilling,
        "blockwise": blockwise,
        "sizes": sizes_by_layer,
        "transformers_bf16": lambda bench: theirs(bench, torch.bfloat16),
        "transformers_float32": lambda bench: theirs(bench, torch.float32),
    }
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, Path(folder))
        name = torch.cuda.get_device_name() if bench.cuda else "cpu"
        bench.say(device=name, torch=torch.__version__, shape=bench.shape, peak_tflops=round(bench.peak / 1e12, 1))
        began = time.perf_counter()
        for case in chosen:
            bench.attempt(case, 0, lambda case=case: work[case](bench))
            bench.say(behind=case, seconds=round(time.perf_counter() - began, 1))
        bench.say(**summary(bench.found))


def summary(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """Ratios of tokens/s, each at its best batch."""
    best = {case: max(rates.values()) for case, rates in found.items()}
    transformers = max((rate for case, rate in best.items() if case.startswith("transformers")), default=math.nan)

    def ratio(one: str, other: float) -> float:
        return round(best.get(one, math.nan) / other, 3)

    return {
        "caramba_to_transformers": ratio("caramba", transformers),
        "caramba_to_by_hand": ratio("caramba", best.get("by_hand", math.nan)),
        "float8_to_bf16": ratio("float8", best.get("caramba", math.nan)),
        "distil_to_plain_step": ratio("finetune", best.get("distil", math.nan)),
        "blockwise_to_trunk": ratio("trunk", best.get("blockwise", math.nan)),
        "sizes_by_layer_to_uniform": ratio("sizes", best.get("uniform", math.nan)),
    }


if __name__ == "__main__":
    main()
