"""The start of DBA without training, with its parts switched on and off: perplexity ratios as JSON lines.

    python bench/dba_start.py DATA [--weights PATH] [--tokens N] [--only GLOB ...] [--minutes N] [--calibrate FILE.npy]

DATA is a folder with ``train.npy``, ``heldout.npy`` and ``heldout_moby.npy``; the weights are a GGUF file or a Hugging
Face folder (the GGUF or ``smollm2-135m-fp32`` in DATA if not given).  Each line is one variant: the ratio of its
perplexity to the teacher's on both held-out texts and on windows of the calibration text that calibration never saw,
and the divergence from the teacher there.  Single process; a variant takes a few seconds on one accelerator.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
import torch.nn.functional as F
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.transplant import GQAToDBA
from caramba_plugins_upcycle.calibration import Calibration
from caramba_plugins_upcycle.refit import Refit
from caramba_plugins_upcycle.stages import stages
from torch import Tensor

from caramba_core.component import Attention
from caramba_core.graph import Graph, Node
from caramba_core.loading import open_source
from caramba_core.lowering import lower
from caramba_core.manifest import structure_model
from caramba_core.manifest.schema import Start
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel
from caramba_core.run.context import TeacherSource
from caramba_core.run.student import assemble, find_sites

CONTEXT, BATCH = 1024, 4
Sizes = tuple[int, int, int]
"""Cached values: semantic, rotary, values."""

X2, X4, X1_14 = (36, 72, 84), (20, 36, 40), (48, 96, 192)


@attrs.frozen(kw_only=True)
class Variant:
    """One conversion: sizes (of every layer, or a list of them), the transplant's settings, what the runner does."""

    sizes: Sizes | list[Sizes] = X2
    options: Mapping[str, Any] = attrs.field(factory=dict)
    transplant: Mapping[str, Any] = attrs.field(factory=dict)
    inputs: str = "teacher"
    refine: bool = True
    refit: bool = True
    ridge: float = 1e-3
    compensate: float = 0.0
    mlp: float | None = None
    mlp_compensate: float = 0.5
    tokens: int | None = None


def variants() -> dict[str, Variant]:
    """Every variant by its name, the most telling first."""
    best: dict[str, Any] = {"refits": "qkqv"}
    made: dict[str, Variant] = {
        "x2 closed form": Variant(refine=False, refit=False),
        "x2 output": Variant(refine=False),
    }
    for refits in ("v", "q", "qk", "qkq", "qv", "qkv", "qkqv", "qkqkqv", "vqkq"):
        made[f"x2 {refits}"] = Variant(transplant={"refits": refits})
    for name, size in (("x1_14", X1_14), ("x4", X4)):
        made[f"{name} output"] = Variant(sizes=size, refine=False)
        made[f"{name} qkqv"] = Variant(sizes=size, transplant=best)
    for field, values in {
        "logit_ridge": (0.05, 0.15, 1.5, 5.0),
        "value_ridge": (0.003, 0.01, 0.1, 0.3),
        "value_rounds": (1, 4),
        "rows": (1024, 2048, 8192, 16384),
        "iterations": (3, 12),
        "selection": ("fold", "norm", "frequency"),
    }.items():
        for value in values:
            made[f"x2 qkqv {field}={value}"] = Variant(transplant={**best, field: value})
    for share in (0.25, 0.5, 0.75):
        made[f"x2 qkqv compensate={share}"] = Variant(transplant=best, compensate=share)
    for ridge in (0.01, 0.1, 1.0):
        made[f"x2 qkqv compensate=0.5 mlp={ridge}"] = Variant(transplant=best, compensate=0.5, mlp=ridge)
    made["x2 qkqv mlp=0.1"] = Variant(transplant=best, mlp=0.1, mlp_compensate=0.0)
    made["x2 qkqv inputs=student"] = Variant(transplant=best, inputs="student")
    for sizes in (
        *((24, 72, 96), (24, 60, 108), (36, 60, 96), (30, 66, 96), (48, 60, 84), (24, 84, 84), (12, 72, 108)),
        *((12, 36, 48), (16, 30, 50), (12, 30, 54), (12, 42, 42), (20, 24, 52), (24, 36, 36)),
        *((48, 108, 180), (72, 96, 168), (60, 108, 168), (48, 120, 168), (36, 114, 186), (54, 126, 156)),
    ):
        made[f"{sum(sizes)} shares={sizes}"] = Variant(sizes=sizes, transplant=best)
    for tokens in (8192, 16384, 65536, 131072):
        made[f"x2 qkqv tokens={tokens}"] = Variant(transplant=best, tokens=tokens)
    made["x2 plain svd"] = Variant(refine=False, refit=False, transplant={"weighting": "none"})
    made["x2 plain svd, output"] = Variant(refine=False, transplant={"weighting": "none"})
    made["x2 per head"] = Variant(options={"k_layout": "per_head"}, transplant=best)
    made["full, split"] = Variant(
        sizes=(90, 102, 192), options={"k_layout": "per_head", "v_layout": "per_head"}, transplant=best
    )
    return made


class Tuned(Calibration):
    """The runner, with what may be worth having there: error compensation and refitting of the MLP."""

    variant = Variant()

    @torch.no_grad()
    def run(self, batches: list[Tensor]) -> dict[str, Any]:
        """As the runner's, with both streams kept for the MLP."""
        report: dict[str, Any] = {}
        states = [(Frame.of(tokens), *2 * (self.teacher.embedder(tokens),)) for tokens in batches]
        for old, new in zip(stages(self.teacher), stages(self.student), strict=True):
            here = [site for site in self.sites if new.holds(site.name)]
            self._drift = [theirs - ours for _, theirs, ours in states]
            for site in here:
                wrapped = [_State(frame, theirs, ours) for frame, theirs, ours in states]
                report[site.name] = self._convert(site, old, new, wrapped)  # type: ignore[arg-type]
            after = [old.run(theirs, frame) for frame, theirs, _ in states]
            if here and self.variant.mlp is not None:
                self._refit_mlp(here[0].name, states, after)
            states = [
                (frame, theirs, new.run(ours, frame)) for theirs, (frame, _, ours) in zip(after, states, strict=True)
            ]
        return report

    def _refit(
        self, student: Any, inputs: list[Tensor], outputs: list[Tensor], frames: list[Frame]
    ) -> dict[str, float]:
        share = self.variant.compensate
        wanted = [o + share * drift for o, drift in zip(outputs, self._drift, strict=True)]
        return super()._refit(student, inputs, wanted, frames)

    def _refit_mlp(self, site: str, states: list[tuple[Frame, Tensor, Tensor]], after: list[Tensor]) -> None:
        """The MLP's output projection, by the rules of the attention's."""
        path = site.removeprefix("model.").rpartition(".")[0]
        old: Any = self.teacher.get_submodule(path)
        new: Any = self.student.get_submodule(path)
        mlp: Any = new.mlp
        mlp.down_proj = torch.nn.Parameter(mlp.down_proj.clone())
        refit = Refit(mlp.down_proj.shape[1], mlp.down_proj.shape[0], mlp.down_proj.device)
        for (frame, theirs, ours), y in zip(states, after, strict=True):
            middle = theirs + old.attention(old.norm(theirs, frame), frame)
            own = ours + new.attention(new.norm(ours, frame), frame)
            h = new.norm_2(own, frame)
            hidden = F.silu(F.linear(h, mlp.gate_proj)) * F.linear(h, mlp.up_proj)
            refit.update(hidden, y - middle + self.variant.mlp_compensate * (middle - own))
        assert self.variant.mlp is not None
        weight, _, _ = refit.solve(mlp.down_proj, None, self.variant.mlp)
        mlp.down_proj.copy_(weight)


@attrs.frozen
class _State:
    frame: Frame
    teacher: Tensor
    student: Tensor


def converted(graph: Graph, replace: Callable[[Node], Attention | None]) -> Graph:
    """The graph with other attentions in place."""

    def visit(node: Node) -> Node:
        scopes = tuple(attrs.evolve(scope, nodes=tuple(map(visit, scope.nodes))) for scope in node.scopes)
        new = replace(node) if isinstance(node.config, Attention) else None
        return attrs.evolve(node, scopes=scopes, config=node.config if new is None else new)

    return attrs.evolve(graph, topology=visit(graph.topology))


def student_graph(teacher: Graph, variant: Variant) -> Graph:
    """Every attention a DBA of the variant's sizes."""
    sizes = iter(variant.sizes if isinstance(variant.sizes, list) else [variant.sizes] * len(teacher.attentions()))

    def replace(node: Node) -> Attention:
        sem, geo, values = next(sizes)
        source: Any = node.config
        return DecoupledBottleneckAttention(
            n_heads=source.n_heads,
            n_kv_heads=source.n_kv_heads,
            head_dim=source.head_dim,
            rope=source.rope,
            sem_dim=sem,
            geo_dim=geo,
            v_dim=values,
            o_bias=True,
            **variant.options,
        )

    return converted(teacher, replace)


class Texts:
    """What is calibrated on and measured on."""

    def __init__(self, folder: Path, calibrate: Path | None, device: torch.device) -> None:
        self.device = device
        train = np.load(calibrate or folder / "train.npy", mmap_mode="r", allow_pickle=False)
        self.order = np.random.default_rng(0).permutation(len(train) // CONTEXT)
        self.train = train
        self.heldout = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("heldout", "heldout_moby")}

    def _rows(self, array: Any, indices: Any) -> Tensor:
        rows = np.stack([array[i * CONTEXT : (i + 1) * CONTEXT] for i in indices])
        return torch.from_numpy(rows.astype(np.int64)).to(self.device)

    def calibration(self, tokens: int) -> list[Tensor]:
        """Batches of windows; the last quarter of the text's windows is kept for measuring."""
        count = tokens // CONTEXT
        assert count <= 3 * len(self.order) // 4, "too little text to calibrate on"
        return list(torch.split(self._rows(self.train, self.order[:count]), BATCH))

    def measured(self, windows: int) -> Iterator[tuple[str, Tensor]]:
        """Windows of each text."""
        yield "own", self._rows(self.train, self.order[-min(windows, len(self.order) // 4) :])
        for name, array in self.heldout.items():
            yield name, self._rows(array, range(windows))


class Measure:
    """Likelihood and divergence against the teacher, whose final hidden states are kept."""

    def __init__(self, teacher: LanguageModel, texts: Texts, windows: int) -> None:
        self.teacher = teacher
        self.parts = [
            (name, batch, teacher.hidden(batch))
            for name, rows in texts.measured(windows)
            for batch in torch.split(rows, BATCH)
        ]

    def __call__(self, student: LanguageModel) -> tuple[dict[str, float], dict[str, float]]:
        """Perplexity ratio and mean KL a text."""
        sums: dict[str, list[float]] = {}
        for name, tokens, hidden in self.parts:
            ours = student.hidden(tokens)[:, :-1].flatten(0, 1)
            theirs, targets = hidden[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
            for at in range(0, len(targets), 2048):
                part = slice(at, at + 2048)
                p = self.teacher.logits(theirs[part]).log_softmax(-1)
                q = student.logits(ours[part]).log_softmax(-1)
                y = targets[part, None]
                values = (
                    float((p.gather(1, y) - q.gather(1, y)).sum()),
                    float((p.exp() * (p - q)).sum()),
                    float(len(y)),
                )
                sums[name] = [a + b for a, b in zip(sums.get(name, [0.0, 0.0, 0.0]), values, strict=True)]
        ratio = {name: round(float(np.exp(worse / count)), 4) for name, (worse, _, count) in sums.items()}
        divergence = {name: round(kl / count, 4) for name, (_, kl, count) in sums.items()}
        return ratio, divergence


def convert(teacher: LanguageModel, variant: Variant, batches: list[Tensor]) -> tuple[LanguageModel, dict[str, Any]]:
    """One student, and the mean over layers of what each step left."""
    graph = student_graph(teacher.graph, variant)
    device = teacher.head_weight.device
    student = assemble(
        graph, teacher=teacher, tensors=None, trained=(), device=device, dtype=torch.float32, seed=0
    ).eval()
    settings = Start(refine=variant.refine, refit=variant.refit, ridge=variant.ridge, inputs=variant.inputs)  # type: ignore[arg-type]
    tuned = Tuned(teacher=teacher, student=student, sites=find_sites(teacher.graph, graph), settings=settings)
    tuned.variant = variant
    transplant = GQAToDBA(**variant.transplant)
    tuned.transplants = dict.fromkeys(tuned.transplants, transplant)
    report = tuned.run(batches)
    return student, summary(report)


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """Means over layers."""
    sites = list(report.values())
    made: dict[str, Any] = {}
    for step, value in (
        ("logits", lambda r: r["refine"]["logits"]),
        ("values", lambda r: [r["refine"]["values"]["before"], r["refine"]["values"]["after"]]),
        ("output", lambda r: [r["refit"]["before"], r["refit"]["after"]]),
    ):
        try:
            made[step] = np.round(np.mean([value(site) for site in sites], axis=0), 5).tolist()
        except KeyError:
            continue
    return made


def main() -> None:
    """Convert and measure each variant."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--only", action="append")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--calibrate", type=Path)
    arguments = parser.parse_args()
    began = time.monotonic()
    torch.set_grad_enabled(False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gguf = sorted(arguments.data.glob("*.gguf"))
    weights = arguments.weights or (gguf[0] if gguf else arguments.data / "smollm2-135m-fp32")
    checkpoint = open_source(str(weights.resolve()), Path())
    teacher = TeacherSource(
        checkpoint, lower(structure_model(checkpoint.model(), origin=str(weights))), str(weights)
    ).load(device, torch.float32)
    texts = Texts(arguments.data, arguments.calibrate, device)
    measure = Measure(teacher, texts, arguments.windows)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(json.dumps({"event": "start", "device": name, "torch": torch.__version__, "tokens": arguments.tokens}))
    for title, variant in variants().items():
        if arguments.only and not any(fnmatch.fnmatch(title, pattern) for pattern in arguments.only):
            continue
        if (time.monotonic() - began) / 60 > arguments.minutes:
            print(json.dumps({"event": "stopped", "before": title}), flush=True)
            break
        start = time.monotonic()
        student, report = convert(teacher, variant, texts.calibration(variant.tokens or arguments.tokens))
        seconds = round(time.monotonic() - start, 1)
        ratio, divergence = measure(student)
        line = {"variant": title, "ratio": ratio, "kl": divergence, "seconds": seconds, **report}
        print(json.dumps(line), flush=True)
        del student


if __name__ == "__main__":
    main()
