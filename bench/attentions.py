"""Attentions at equal cached bytes: perplexity ratios after conversion and after distillation, as JSON lines.

    python bench/attentions.py DATA [--group G ...] [--run R] [--set path=value ...] [--minutes N] [--output DIR]
                                    [--windows N]

DATA is a folder with the weights that ``bench/attentions.yml`` names, ``train.npy``, ``heldout.npy`` and
``heldout_moby.npy``.  Without ``--run`` the four attentions in all layers are converted and distilled.  With ``--run
convert`` no training step is taken, and the four are converted in every second layer too.  ``--group`` chooses among
them: the groups do not depend on each other, so that each may have a process of its own.  Runs that stopped
(``--minutes``) go on when the command is given again; lines of finished runs are printed anew.  Without CUDA nothing is
compiled; a quick look there:

    python bench/attentions.py DATA --run convert --group mla --windows 4 --set vars.calibration=16384
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from caramba_plugins_standard.measurement import Measurement
from caramba_plugins_standard.perplexity import measure
from recipe import evaluation, facts, ratios, say, texts

from caramba_core.manifest.load import load_manifest
from caramba_core.nn.cache import Cache
from caramba_core.nn.language_model import LanguageModel
from caramba_core.run.experiment import Experiment

MANIFEST = Path(__file__).with_suffix(".yml").resolve()
GROUPS = ("dba", "mla", "sliding_window", "linear_attention")
HALVES = tuple(f"{group}_half" for group in GROUPS)
WITHOUT_CUDA = ("vars.compile=false", "vars.cuda_graph=false")


def cache_bytes(model: LanguageModel) -> dict[str, int]:
    """Bytes of a bfloat16 cache of one sequence, counted from allocated tensors, by the length of the text."""
    return {
        str(length): Cache(model.graph, batch=1, dtype=torch.bfloat16, capacity=length).bytes
        for length in (256, 1024, 4096)
    }


def main() -> None:
    """Convert and distil with each attention, one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--group", action="append", choices=(*GROUPS, *HALVES))
    parser.add_argument("--run", help="one run of each group, such as convert")
    parser.add_argument("--windows", type=int, default=32, help="of 1,024 held-out tokens, a text")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--output", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    began = time.monotonic()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    folder = arguments.data.resolve()
    overrides = [
        f"vars.data={folder}",
        f"vars.windows={arguments.windows}",
        *(() if torch.cuda.is_available() else WITHOUT_CUDA),
    ]
    overrides += arguments.overrides
    say(event="start", device=device, torch=torch.__version__, overrides=overrides)
    settings = evaluation(windows=arguments.windows)
    data = texts(folder)
    teacher: dict[str, Measurement] = {}
    for group in arguments.group or (*GROUPS, *(HALVES if arguments.run == "convert" else ())):
        minutes = None if arguments.minutes is None else arguments.minutes - (time.monotonic() - began) / 60
        if minutes is not None and minutes <= 0:
            say(event="stopped", group=group)
            break
        loaded = load_manifest(str(MANIFEST), overrides=overrides, fetch=True)
        experiment = Experiment(loaded, group=group, run=arguments.run, output=output)
        left = experiment.unfinished(resume=True)
        experiment.check(left)
        experiment.open(left)
        finished = experiment.run(left, minutes=minutes)
        for run in experiment.groups[0].runs:
            context = experiment.finished_context(experiment.groups[0], run)
            if context is None:
                continue
            if not teacher:
                teacher = {name: measure(context.teacher, tokens, settings) for name, tokens in data.items()}
                perplexity = {name: round(one.perplexity, 4) for name, one in teacher.items()}
                say(event="teacher", perplexity=perplexity, cache_bytes=cache_bytes(context.teacher))
            ratio = ratios(context.student, teacher, data, settings)
            say(
                event="run",
                group=group,
                run=run.id,
                ratio=ratio,
                parameters=sum(parameter.numel() for parameter in context.student.parameters()),
                cache_bytes=cache_bytes(context.student),
                **facts(context),
            )
        if not finished:
            say(event="stopped", group=group)
            break


if __name__ == "__main__":
    main()
