"""The upcycling recipe, measured: perplexity ratios of start and end on two held-out texts, as JSON lines.

    python bench/recipe.py MANIFEST DATA [--group G ...] [--run R] [--set path=value ...] [--minutes N] [--output DIR]
                                         [--context N] [--windows N] [--cache full|int8|int4 ...] [--kinds]

MANIFEST is a manifest such as ``bench/recipe.yml``; DATA a folder with its weights, ``train.npy``, ``heldout.npy`` and
``heldout_moby.npy``.  ``--cache`` says how the students' keys and values are kept while they are measured, and the
teacher's where it is measured as its own rival; ratios are always to the teacher with a full cache.  ``--kinds`` adds
the held-out text of every kind that ``bench/texts.py`` put into DATA, their geometric mean and the worst; train on them
with ``--set vars.train=DATA/train_kinds.npy``.  ``bench/kinds.py`` says more of finished runs.  Runs that stopped
(``--minutes``) go on when the command is given again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import numpy as np
import torch
from caramba_plugins_standard.measurement import Measurement
from caramba_plugins_standard.perplexity import measure
from caramba_plugins_standard.quantized import Full, Int4, Int8
from ruamel.yaml import YAML

from caramba_core.components import Attention, Storage
from caramba_core.datasets import Tokens
from caramba_core.manifest.load import load_manifest
from caramba_core.modes import Evaluation
from caramba_core.nn.cache import Cache
from caramba_core.nn.language_model import LanguageModel
from caramba_core.run.context import RunContext
from caramba_core.run.experiment import Experiment

STORAGES: dict[str, Storage | None] = {"own": None, "full": Full(), "int8": Int8(), "int4": Int4()}
"""How a cache keeps keys and values; ``own`` is what each attention says."""

TEXTS = ("heldout", "heldout_moby")


def say(**record: Any) -> None:
    """One JSON line."""
    print(json.dumps(record), flush=True)


def texts(folder: Path, *, kinds: bool = False) -> dict[str, Tokens]:
    """The held-out token arrays; with ``kinds``, of every kind of text, too."""
    names = list(TEXTS)
    if kinds:
        listed = json.loads((folder / "kinds.json").read_text(encoding="utf-8"))["kinds"]
        names += [f"heldout_{kind}" for kind in listed]
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
    return {name: Tokens(ids=ids, tokenizer=None, origin=name) for name, ids in arrays.items()}


def naming_data(manifest: str, folder: Path, overrides: list[str]) -> list[str]:
    """``vars.data`` set to the folder; a manifest of mode allocate has no variables and names its files by itself."""
    document = YAML(typ="safe", pure=True).load(Path(manifest))
    return [f"vars.data={folder}", *overrides] if {"vars", "extends"} & document.keys() else overrides


def evaluation(context: int = 1024, windows: int = 32, cache: str = "full") -> Evaluation:
    """How the texts are measured."""
    batch_size = max(1, 8192 // context)
    return Evaluation(windows=windows, context=context, batch_size=batch_size, cache=STORAGES[cache])


def ratios(
    model: Any, teacher: dict[str, Measurement], data: dict[str, Tokens], settings: Evaluation
) -> dict[str, float]:
    """Perplexity over the teacher's on each text, in float32; of kinds of text the geometric mean and the worst."""
    found = {
        name: measure(model, tokens, settings).perplexity / teacher[name].perplexity for name, tokens in data.items()
    }
    if len(found) > len(TEXTS):
        found |= {"mean": geometric_mean(found.values()), "worst": max(found.values())}
    return {name: round(ratio, 4) for name, ratio in found.items()}


def main() -> None:
    """Run the manifest's groups one after the other and measure what each run left."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest")
    parser.add_argument("data", type=Path)
    parser.add_argument("--group", action="append")
    parser.add_argument("--run")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--cache", action="append", choices=STORAGES)
    parser.add_argument("--kinds", action="store_true")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--output", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    manifest = str(Path(arguments.manifest).resolve())
    output = arguments.output.resolve()
    overrides = naming_data(manifest, arguments.data.resolve(), arguments.overrides)
    began = time.monotonic()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    say(event="start", device=device, torch=torch.__version__, overrides=arguments.overrides)
    kept: list[str] = arguments.cache or ["own"]
    settings = {cache: evaluation(arguments.context, arguments.windows, cache) for cache in ("full", *kept)}
    data = texts(arguments.data, kinds=arguments.kinds)
    teacher: dict[str, Measurement] = {}
    for group in arguments.group or ["v192", "v336", "v96"]:
        minutes = None if arguments.minutes is None else arguments.minutes - (time.monotonic() - began) / 60
        loaded = load_manifest(manifest, overrides=overrides, fetch=True)
        experiment = Experiment(loaded, group=group, run=arguments.run, output=output)
        left = experiment.unfinished(resume=True)
        experiment.check(left)
        experiment.open(left)
        finished = experiment.run(left, minutes=minutes)
        for run in experiment.groups[0].runs:
            context = experiment.finished_context(experiment.groups[0], run)
            if context is None or not context.directory.checkpoints():
                continue
            if not teacher:
                teacher = {name: measure(context.teacher, tokens, settings["full"]) for name, tokens in data.items()}
                say(event="teacher", perplexity={name: round(m.perplexity, 4) for name, m in teacher.items()})
                say(event="windows", nll={name: m.nll.mean(1).round(4).tolist() for name, m in teacher.items()})
                for cache in set(kept) - {"own", "full"}:
                    report(context.teacher, teacher, data, settings[cache], group="teacher")
            for cache in kept:
                report(context.student, teacher, data, settings[cache], group=group, run=run.id, **facts(context))
        if not finished:
            say(event="stopped", group=group)
            sys.exit(0)


def report(
    model: LanguageModel, teacher: dict[str, Measurement], data: dict[str, Tokens], settings: Evaluation, **record: Any
) -> None:
    """One line: how one model does with one kind of cache, whose bytes a token are counted in bfloat16."""
    say(
        event="run",
        context=settings.context,
        cache=cache_of(model, settings.cache),
        ratio=ratios(model, teacher, data, settings),
        cache_bytes=bytes_a_token(model, settings.cache),
        **record,
    )


def cache_of(model: LanguageModel, storage: Storage | None) -> str:
    """The name of a kind of cache: of the attentions' own, if they have any."""
    configs = (node.config for node in model.graph.attentions().values())
    if storage is None and any(isinstance(config, Attention) and config.cache for config in configs):
        return "own"
    return next(name for name, one in STORAGES.items() if one == (storage or Full()))


def bytes_a_token(model: LanguageModel, storage: Storage | None) -> float:
    """Of a cache of one sequence that computes in bfloat16, from its allocated tensors."""
    small, large = (
        Cache(model.graph, batch=1, dtype=torch.bfloat16, capacity=length, storage=storage).bytes
        for length in (1024, 2048)
    )
    return (large - small) / 1024


def facts(context: RunContext) -> dict[str, Any]:
    """What the summary says of time and tokens."""
    summary = context.directory.summary() or {}
    wanted = (
        "tokens",
        "calibration_tokens",
        "max_context",
        "train_seconds",
        "convert_seconds",
    )
    return {key: summary[key] for key in wanted if key in summary}


if __name__ == "__main__":
    main()
