"""The start of DBA without training, with its parts switched on and off: perplexity ratios as JSON lines.

    python bench/dba_start.py DATA [--weights PATH] [--tokens N] [--only GLOB ...] [--minutes N] [--kinds]
                                   [--calibrate FILE.npy ...] [--context N] [--windows N] [--cache full|int8|int4 ...]

DATA is a folder with ``train.npy``, ``heldout.npy`` and ``heldout_moby.npy``; the weights are a GGUF file or a Hugging
Face folder (the GGUF or ``smollm2-135m-fp32`` in DATA if not given).  Each line is one variant: the ratio of its
perplexity to the teacher's on both held-out texts and on windows of the calibration text that calibration never saw,
and the divergence from the teacher there.  Several files of ``--calibrate`` give windows in turn; ``--kinds`` adds the
held-out text of every kind that ``bench/texts.py`` put into DATA, and of all held-out texts the geometric mean and the
worst.  With a rounded cache every key and value, a token's own too, is read back
from it; the variant ``teacher`` is the teacher with such a cache.  Single process; a variant takes a few seconds on one
accelerator.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import attrs
import numpy as np
import torch
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.transplant import GQAToDBA
from caramba_plugins_standard.loading import PretrainedModel, open_source
from caramba_plugins_standard.quantized import Int4, Int8
from caramba_plugins_upcycle.calibration import Calibration
from caramba_plugins_upcycle.modes import Start
from torch import Tensor

from caramba_core.components import Attention, Storage
from caramba_core.graph import Graph, Node
from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel
from caramba_core.run.student import assemble
from caramba_core.sites import find_sites

BATCH = 4
STORAGES: dict[str, Storage | None] = {"full": None, "int8": Int8(), "int4": Int4()}
Sizes = tuple[int, int, int]
"""Cached values: semantic, rotary, values."""

X2, X4, X1_14, EQUAL = (36, 72, 84), (20, 36, 40), (48, 96, 192), (24, 72, 96)


@attrs.frozen(kw_only=True)
class Variant:
    """One conversion: sizes, and the settings of the attention, of its transplant, and of the start."""

    sizes: Sizes = X2
    options: Mapping[str, Any] = attrs.field(factory=dict)
    transplant: Mapping[str, Any] = attrs.field(factory=dict)
    start: Mapping[str, Any] = attrs.field(factory=dict)
    tokens: int | None = None

    def but(self, **changes: Any) -> Variant:
        """This variant with other sizes, tokens, options, or single settings of transplant and start."""
        merged = {
            name: {**getattr(self, name), **value} if isinstance(value, dict) else value
            for name, value in changes.items()
        }
        return attrs.evolve(self, **merged)


FULL = Variant(transplant={"refits": "v", "rows": 16384}, start={"refine": True, "refit_mlp": True})
"""Everything that the start has; the recipe of ``bench/recipe.yml``."""


def variants() -> dict[str, Variant]:
    """Every variant by its name: the ablation first, one term of the start switched off or replaced at a time."""
    plain = FULL.but(start={"refine": False, "refit_mlp": False, "compensate": 0.0})
    made = {
        "everything": FULL,
        "no refit of the MLP": FULL.but(start={"refit_mlp": False}),
        "no compensation": FULL.but(start={"compensate": 0.0}),
        "no refinement of values": FULL.but(start={"refine": False}),
        "refit of W_o alone": plain,
        "closed form": plain.but(start={"refit": False}),
        "pairs by energy": FULL.but(transplant={"selection": "norm"}),
        "pairs by frequency": FULL.but(transplant={"selection": "frequency"}),
        "mean rotation folded": FULL.but(transplant={"fold": "mean"}),
        "its phase folded": FULL.but(transplant={"fold": "phase"}),
        "nothing weighed by calibration": FULL.but(transplant={"weighting": "none"}),
        "plain decompositions": plain.but(start={"refit": False}, transplant={"weighting": "none"}),
        "keys a head": FULL.but(options={"k_layout": "per_head"}),
        "moments on student inputs": FULL.but(start={"inputs": "student"}),
    }
    made = {f"ablation {name}": variant for name, variant in made.items()}
    for name, size in (("x1_14", X1_14), ("x4", X4)):
        made[f"{name} everything"] = FULL.but(sizes=size)
        made[f"{name} refit of W_o alone"] = plain.but(sizes=size)
    for refits in ("q", "qk", "qv", "qkv", "qkqv"):
        made[f"refits={refits}"] = FULL.but(transplant={"refits": refits, "rows": 4096})
    for field, values in {
        "value_ridge": (0.003, 0.01, 0.1, 0.3),
        "value_rounds": (1, 4),
        "rows": (1024, 4096, 65536),
    }.items():
        for value in values:
            made[f"{field}={value}"] = FULL.but(transplant={field: value})
    for field, shares in {"compensate": (0.25, 0.75, 1.0), "mlp_ridge": (0.01, 1.0), "ridge": (1e-4, 1e-2)}.items():
        for share in shares:
            made[f"{field}={share}"] = FULL.but(start={field: share})
    for sizes in (
        *((24, 72, 96), (24, 60, 108), (36, 60, 96), (30, 66, 96), (48, 60, 84), (24, 84, 84), (12, 72, 108)),
        *((12, 36, 48), (16, 30, 50), (12, 30, 54), (12, 42, 42), (20, 24, 52), (24, 36, 36)),
        *((48, 108, 180), (72, 96, 168), (60, 108, 168), (48, 120, 168), (36, 114, 186), (54, 126, 156)),
    ):
        made[f"{sum(sizes)} shares={sizes}"] = FULL.but(sizes=sizes)
    for tokens in (8192, 16384, 32768, 131072, 262144):
        made[f"tokens={tokens}"] = FULL.but(tokens=tokens)
    shared = {"geo_layout": "shared"}
    servable = {**shared, "layout": "servable"}
    for name, sizes, options in (
        ("free", EQUAL, {}),
        ("a key for all heads", EQUAL, shared),
        ("one list of frequencies", EQUAL, servable),
        ("three groups", EQUAL, {**servable, "groups": 3}),
        *((f"shares={sizes}", sizes, servable) for sizes in ((12, 84, 96), (32, 64, 96), (40, 56, 96), (48, 48, 96))),
        *((f"x4 shares={sizes}", sizes, servable) for sizes in ((8, 40, 48), (12, 36, 48), (16, 32, 48), (24, 24, 48))),
    ):
        made[f"servable {name}"] = FULL.but(sizes=sizes, options=options)
    joint = FULL.but(sizes=(0, 48, 144), options={"latent": "joint", **shared})
    made["joint everything"] = joint
    made["joint no refinement of values"] = joint.but(start={"refine": False})
    made["joint pairs of single heads"] = joint.but(options={"geo_layout": "per_head"})
    made["separate a key for all heads"] = FULL.but(options=shared)
    for price in (0.5, 2.0, 4.0, 8.0):
        made[f"joint key_price={price}"] = joint.but(transplant={"key_price": price})
    for sizes in (
        *((0, 32, 160), (0, 40, 152), (0, 56, 136), (0, 64, 128)),
        *((0, 16, 80), (0, 24, 72), (0, 32, 64)),
        *((0, 64, 272), (0, 80, 256), (0, 96, 240)),
        *((0, 32, 136), (0, 40, 128), (0, 56, 112), (0, 48, 256), (0, 64, 240), (0, 96, 208)),
    ):
        made[f"joint {sum(sizes)} shares={sizes[1:]}"] = joint.but(sizes=sizes)
    for field, shares in {"ridge": (0.01, 0.03), "mlp_ridge": (0.03, 0.3)}.items():
        for share in shares:
            made[f"joint 168 {field}={share}"] = joint.but(sizes=(0, 40, 128), start={field: share})
    made["full, split"] = plain.but(sizes=(90, 102, 192), options={"k_layout": "per_head", "v_layout": "per_head"})
    return made


def converted(graph: Graph, replace: Callable[[Node], Attention | None]) -> Graph:
    """The graph with other attentions in place."""

    def visit(node: Node) -> Node:
        scopes = tuple(attrs.evolve(scope, nodes=tuple(map(visit, scope.nodes))) for scope in node.scopes)
        new = replace(node) if isinstance(node.config, Attention) else None
        return attrs.evolve(node, scopes=scopes, config=node.config if new is None else new)

    return attrs.evolve(graph, topology=visit(graph.topology))


def student_graph(teacher: Graph, variant: Variant) -> Graph:
    """Every attention a DBA of the variant's sizes."""
    sem, geo, values = variant.sizes

    def replace(node: Node) -> Attention:
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

    def __init__(
        self,
        folder: Path,
        calibrate: Sequence[Path],
        device: torch.device,
        context: int = 1024,
        *,
        kinds: bool = False,
    ) -> None:
        self.device, self.context = device, context
        names = ["heldout", "heldout_moby"]
        if kinds:
            listed = json.loads((folder / "kinds.json").read_text(encoding="utf-8"))["kinds"]
            names += [f"heldout_{kind}" for kind in listed]
        arrays = [np.load(path, mmap_mode="r", allow_pickle=False) for path in calibrate or [folder / "train.npy"]]
        self.sources = [(ids, np.random.default_rng(0).permutation(len(ids) // context)) for ids in arrays]
        self.heldout = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}

    def _rows(self, array: Any, indices: Any) -> Tensor:
        rows = np.stack([array[i * self.context : (i + 1) * self.context] for i in indices])
        return torch.from_numpy(rows.astype(np.int64)).to(self.device)

    def calibration(self, tokens: int) -> list[Tensor]:
        """Batches of windows, of each text in turn; the last quarter of a text's windows is kept for measuring."""
        count, texts = tokens // self.context, len(self.sources)
        rows = []
        for place in range(count):
            ids, order = self.sources[place % texts]
            assert place // texts < 3 * len(order) // 4, "too little text to calibrate on"
            rows.append(self._rows(ids, order[place // texts : place // texts + 1]))
        return list(torch.split(torch.cat(rows), BATCH))

    def measured(self, windows: int) -> Iterator[tuple[str, Tensor]]:
        """Windows of each text; those of the first calibration text are its ``own``."""
        ids, order = self.sources[0]
        yield "own", self._rows(ids, order[-min(windows, len(order) // 4) :])
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

    def __call__(
        self, student: LanguageModel, storage: Storage | None = None
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Perplexity ratio and mean KL a text, with what is read back from a cache of ``storage``, if any."""
        sums: dict[str, list[float]] = {}
        for name, tokens, hidden in self.parts:
            cache = None
            if storage is not None:
                cache = student.new_cache(len(tokens), capacity=tokens.shape[1], storage=storage)
            ours = student.hidden(tokens, Frame.of(tokens, cache=cache))[:, :-1].flatten(0, 1)
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
    settings = Start(transplant=GQAToDBA(**variant.transplant), **variant.start)
    sites = find_sites(teacher.graph, graph)
    report = Calibration(teacher=teacher, student=student, sites=sites, settings=settings).run(batches)
    return student, summary(report)


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """Means over layers."""
    sites = [entry for entry in report.values() if "start" in entry]
    made: dict[str, Any] = {}
    for step, value in (
        ("lost", lambda r: [r["start"][f"{part}_lost"] for part in ("rotation", "semantic", "values")]),
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
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--cache", action="append", choices=STORAGES)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--calibrate", type=Path, action="append", default=[])
    parser.add_argument("--kinds", action="store_true")
    arguments = parser.parse_args()
    began = time.monotonic()
    torch.set_grad_enabled(False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gguf = sorted(arguments.data.glob("*.gguf"))
    weights = arguments.weights or (gguf[0] if gguf else arguments.data / "smollm2-135m-fp32")
    checkpoint = open_source(str(weights.resolve()), Path())
    teacher = PretrainedModel(
        checkpoint, lower(structure_model(checkpoint.model(), origin=str(weights))), str(weights)
    ).load(device, torch.float32)
    texts = Texts(arguments.data, arguments.calibrate, device, arguments.context, kinds=arguments.kinds)
    measure = Measure(teacher, texts, arguments.windows)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(json.dumps({"event": "start", "device": name, "torch": torch.__version__, "tokens": arguments.tokens}))

    def measured(title: str, model: LanguageModel, **record: Any) -> None:
        for cache in arguments.cache or ["full"]:
            ratio, divergence = measure(model, STORAGES[cache])
            if arguments.kinds:
                of = {name: value for name, value in ratio.items() if name != "own"}
                ratio |= {"mean": round(geometric_mean(of.values()), 4), "worst": max(of.values())}
            line = {"variant": title, "cache": cache, "ratio": ratio, "kl": divergence, **record}
            print(json.dumps(line), flush=True)

    if "teacher" in (arguments.only or ()):
        measured("teacher", teacher)
    for title, variant in variants().items():
        if arguments.only and not any(fnmatch.fnmatch(title, pattern) for pattern in arguments.only):
            continue
        if (time.monotonic() - began) / 60 > arguments.minutes:
            print(json.dumps({"event": "stopped", "before": title}), flush=True)
            break
        start = time.monotonic()
        student, report = convert(teacher, variant, texts.calibration(variant.tokens or arguments.tokens))
        seconds = round(time.monotonic() - start, 1)
        measured(title, student, seconds=seconds, **report)
        del student


if __name__ == "__main__":
    main()
