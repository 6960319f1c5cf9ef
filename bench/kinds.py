"""Every way to a smaller cache on one teacher, over kinds of text and contexts, as JSON lines.

    python bench/kinds.py TEACHER DATA [--context 1024 ...] [--tokens 32768] [--kind NAME ...] [--rival NAME ...]
                                       [--run NAME[@BYTES]=FOLDER ...] [--cache full ...] [--device cuda]

DATA is what ``bench/texts.py`` wrote; ``heldout.npy`` (Austen) and ``heldout_moby.npy`` there are kinds, too.  Of each,
``--tokens`` tokens are read in windows of each ``--context``: KL(teacher || it), how often both hold the same token the
likeliest, and perplexity over the teacher's, each with its 95 % interval, its mean over kinds (the geometric one of
ratios) and the worst kind, and by quarters of the window.

Rivals need no training and are built from the teacher here: ``int8`` and ``int4`` caches; ``int4_128``, transformers'
int4 with a window in full; ``kivi4`` and ``kivi2``; ``window``, ``snapkv``, ``observed`` and ``knorm`` with a half or a
quarter of the context, or with the share that so many bytes per token are (``window@3400``); ``transmla`` at a half and
a quarter of the teacher's values.  ``--run`` adds finished runs of caramba (DBA, MLA, linear attention, ...) under a
name, with each cache of ``--cache``; the same name again is another seed.  With ``@BYTES`` the sliding windows of a run
are at every context as long as that leaves room for.  Bytes are per token at the context, over all layers, as stored:
scales included.

On one GPU, with runs of bench/recipe.yml and bench/attentions.yml beside each other:

    python bench/kinds.py SmolLM2.gguf DATA --context 1024 --context 4096 --context 8192 \\
        --run dba=runs/recipe/v192/distil --run mla=runs/attentions/mla/distil >> docs/measurements/kinds.jsonl
    python bench/curves.py
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from caramba_plugins_eval.metrics import Agreement
from caramba_plugins_eval.results import measure_all
from caramba_plugins_eval.subject import Subject
from caramba_plugins_sliding_window.attention import SlidingWindowAttention
from caramba_plugins_standard.opening import cache_named, load_checkpoint, open_checkpoint, open_run
from caramba_terminal.reporter import Reporter
from rich.console import Console

from caramba_core.components import Storage, evolve
from caramba_core.datasets import Tokens
from caramba_core.errors import InputError
from caramba_core.graph import Node
from caramba_core.modes import Evaluation
from caramba_core.nn.cache import Cache
from caramba_core.nn.language_model import LanguageModel

try:
    from rivals import Evicting, Rival, Rounded, TransMLA, Window, attentions, bytes_of, put_in
except ImportError:  # as part of the package that tests import
    from bench.rivals import Evicting, Rival, Rounded, TransMLA, Window, attentions, bytes_of, put_in

CACHES = ("int8", "int4")
"""Rivals that are caches of caramba's own."""

KEEPING = ("window", "snapkv", "observed", "knorm")
"""Rivals that keep a share of the tokens."""

PASS = 8192
"""Tokens of a pass."""


def rivals(model: LanguageModel) -> dict[str, Rival]:
    """All that are built from the teacher, by name; sizes follow from its own."""
    layer = next(iter(attentions(model).values()))
    values = 2 * layer.n_kv_heads * layer.head_dim
    found: dict[str, Rival] = {
        "int4_128": Rounded(4, 64),
        "kivi4": Rounded(4, 32, by_channel=True),
        "kivi2": Rounded(2, 32, by_channel=True),
    }
    for name, share in (("half", 0.5), ("quarter", 0.25)):
        found |= {f"{kept}_{name}": _keeping(kept, share) for kept in KEEPING}
        if (rank := int(share * values) - layer.head_dim) > 0:
            found[f"transmla_{name}"] = TransMLA(rank)
    return found


def rival(model: LanguageModel, name: str) -> Rival | None:
    """One of :func:`rivals`, or ``window@3400``: one that keeps tokens for so many bytes each of the context."""
    kept, _, size = name.partition("@")
    if kept in KEEPING and size.isdigit():
        return _keeping(kept, int(size) / cached(model, "full", 1))
    return rivals(model).get(name)


def _keeping(name: str, share: float) -> Rival:
    return Window(share) if name == "window" else Evicting(share, name)  # type: ignore[arg-type]


def texts(folder: Path, kinds: list[str] | None, tokens: int) -> dict[str, Tokens]:
    """The first tokens of every held-out array, by kind; those of ``kinds.json``, Austen and Moby Dick."""
    files = {"austen": "heldout", "moby": "heldout_moby"}
    if (folder / "kinds.json").exists():
        listed = json.loads((folder / "kinds.json").read_text(encoding="utf-8"))["kinds"]
        files = {**{kind: f"heldout_{kind}" for kind in listed}, **files}
    found = {}
    for kind, name in files.items():
        if (kinds is None or kind in kinds) and (folder / f"{name}.npy").exists():
            ids = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            found[kind] = Tokens(ids=ids[:tokens], tokenizer=None, origin=kind)
    return found


def measured(
    model: LanguageModel,
    teacher: LanguageModel,
    data: dict[str, Tokens],
    context: int,
    cache: str,
    computing: Callable[[], AbstractContextManager[Any]],
) -> dict[str, Any]:
    """KL, agreement and ratio of each kind, their means and the worst, and by quarters of the window."""
    shortest = min(data.values(), key=lambda one: len(one.ids))
    evaluation = Evaluation(
        context=context,
        windows=len(shortest.ids) // context,
        batch_size=max(1, PASS // context),
        cache=stored(cache),
    )
    subject = Subject(
        name="rival",
        evaluation=evaluation,
        tokenizer=None,
        longest=None,
        device=teacher.head_weight.device,
        seed=0,
        reporter=Reporter(Console(stderr=True, quiet=True)),
        computing=computing,
        load=lambda: model,
        load_teacher=lambda: teacher,
        open_tokens=lambda: shortest,
        texts=data,
    )
    figures = measure_all([Agreement(context=context, buckets=4)], subject)
    found: dict[str, Any] = {"tokens_a_kind": evaluation.windows * context}
    for name in ("ratio", "kl", "top1"):
        of = {key.removeprefix(f"agreement.{name}@"): one for key, one in figures.items() if f".{name}@" in key}
        found[name] = {kind: round(one["value"], 5) for kind, one in of.items()}
        found[f"{name}_95"] = {kind: [round(end, 5) for end in one["interval_95"] or ()] for kind, one in of.items()}
        parts = sorted({key.partition("@")[0] for key in figures if f".{name}." in key}, key=_first)
        found[f"{name}_by_position"] = {
            part.rpartition(".")[2]: round(figures[f"{part}@mean"]["value"], 5) for part in parts
        }
    return found


def _first(part: str) -> int:
    return int(part.rpartition(".")[2].partition("-")[0])


def contenders(
    arguments: argparse.Namespace, teacher: LanguageModel, calibration: torch.Tensor
) -> Iterator[tuple[dict[str, Any], Callable[[int], LanguageModel], str, Callable[[int], float]]]:
    """Everything that is asked for, one after the other: facts, the model for a context, cache, bytes per token."""
    asked = arguments.rival if arguments.rival is not None else [*CACHES, *rivals(teacher)]
    for name in (name for name in asked if name in CACHES):
        yield {"name": name}, partial(_as_it_is, teacher), name, partial(cached, teacher, name)
    changed = copy.deepcopy(teacher)
    for name in (name for name in asked if name not in CACHES):
        own = rival(teacher, name)
        assert own is not None, "names are checked"
        put_in(changed, own, calibration)
        yield {"name": name}, partial(_as_it_is, changed), "full", partial(bytes_of, changed, own)
    del changed
    for run in arguments.run:
        name, _, folder = run.partition("=")
        opened = open_run(Path(folder), None)
        model = opened.model(arguments.device).eval()
        facts = {"run": opened.run.id, "seed": opened.run.seed, "tokens": (opened.summary or {}).get("tokens", 0)}
        for cache in arguments.cache or ["own"]:
            called = name if cache == "own" else f"{name}, {cache}"
            size = name.partition("@")[2]
            at = partial(with_windows, model, cache, int(size)) if size else partial(_as_it_is, model)
            yield {"name": called, **facts}, at, cache, partial(cached, model, cache)


def _as_it_is(model: LanguageModel, context: int) -> LanguageModel:
    return model


def with_windows(model: LanguageModel, cache: str, most: int, context: int) -> LanguageModel:
    """The model, changed in place: its sliding windows, all alike, as long as ``most`` bytes per token let them be.

    Raises :class:`InputError` for a model that has none, or takes more without.
    """
    modules = [module for module in model.modules() if isinstance(_config(module), SlidingWindowAttention)]
    if not modules:
        raise InputError("@BYTES sets the lengths of sliding windows, and this model has none")
    fits, beyond = 0, context + 1
    while beyond - fits > 1:
        tried = (fits + beyond) // 2
        _set_windows(model, modules, tried)
        fits, beyond = (tried, beyond) if cached(model, cache, context) <= most else (fits, tried)
    if not fits:
        raise InputError(f"without any window this model takes more than {most} bytes per token at {context:,}")
    _set_windows(model, modules, fits)
    return model


def _set_windows(model: LanguageModel, modules: list[torch.nn.Module], window: int) -> None:
    for module in modules:
        module.config = evolve(_config(module), window=window)
    model.graph = attrs.evolve(model.graph, topology=_windowed(model.graph.topology, window))


def _windowed(node: Node, window: int) -> Node:
    if isinstance(node.config, SlidingWindowAttention):
        return attrs.evolve(node, config=evolve(node.config, window=window))
    scopes = (
        attrs.evolve(scope, nodes=tuple(_windowed(inner, window) for inner in scope.nodes)) for scope in node.scopes
    )
    return attrs.evolve(node, scopes=tuple(scopes))


def _config(module: torch.nn.Module) -> Any:
    return getattr(module, "config", None)


def stored(cache: str) -> Storage | None:
    """The kind of cache with this name; ``own`` is what each attention says."""
    return None if cache == "own" else cache_named(cache)


def cached(model: LanguageModel, cache: str, context: int) -> float:
    """Bytes per token of a cache for so many tokens that computes in bfloat16."""
    layout = Cache(model.graph, batch=1, dtype=torch.bfloat16, device="meta", capacity=context, storage=stored(cache))
    return layout.bytes / context


def commit() -> str:
    """Of this checkout."""
    where = Path(__file__).resolve().parent
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=where, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def main(arguments: list[str] | None = None) -> None:
    """Measure everything at every context."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("teacher")
    parser.add_argument("data", type=Path)
    parser.add_argument("--context", type=int, action="append")
    parser.add_argument("--tokens", type=int, default=32768, help="of each kind")
    parser.add_argument("--kind", action="append", help="all if not given")
    parser.add_argument("--rival", action="append", help="all if not given; none with --rival ''")
    parser.add_argument("--run", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--cache", action="append", help="of runs: own (what each attention says), full, int8, int4")
    parser.add_argument("--calibration", type=int, default=65536, help="tokens of train_kinds.npy for transmla")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args(arguments)
    asked.rival = None if asked.rival is None else [name for name in asked.rival if name]
    teacher = load_checkpoint(open_checkpoint(asked.teacher), asked.device, "float32").eval()
    unknown = sorted(name for name in asked.rival or () if name not in CACHES and rival(teacher, name) is None)
    if unknown:
        known = (*CACHES, *rivals(teacher), *(f"{name}@BYTES" for name in KEEPING))
        parser.error(f"no rivals: {', '.join(unknown)}; there are {', '.join(known)}")
    data = texts(asked.data, asked.kind, asked.tokens)
    if not data:
        parser.error(f"{asked.data} has no held-out texts; bench/texts.py makes them")
    train = next((path for name in ("train_kinds", "train") if (path := asked.data / f"{name}.npy").exists()), None)
    ids = (
        np.zeros(0, np.int64) if train is None else np.load(train, mmap_mode="r")[: asked.calibration].astype(np.int64)
    )
    width = max(1, min(1024, len(ids)))
    calibration = torch.from_numpy(ids[: len(ids) // width * width].reshape(-1, width)).to(asked.device)
    device = torch.cuda.get_device_name() if asked.device.startswith("cuda") else asked.device
    facts = {
        "date": str(datetime.datetime.now(datetime.UTC).date()),
        "commit": commit(),
        "device": device,
        "torch": torch.__version__,
        "command": " ".join(["python bench/kinds.py", *(sys.argv[1:] if arguments is None else arguments)]),
    }

    def computing() -> AbstractContextManager[Any]:
        return torch.autocast(asked.device.partition(":")[0], torch.bfloat16, enabled=asked.dtype == "bfloat16")

    for own, at, cache, size in contenders(asked, teacher, calibration):
        for context in asked.context or [1024]:
            found = measured(at(context), teacher, data, context, cache, computing)
            record = {"kind": "kinds", **own, "context": context, "cache_bytes": round(size(context), 1), **found}
            print(json.dumps({**record, "dtype": asked.dtype, **facts}), flush=True)


if __name__ == "__main__":
    main()
