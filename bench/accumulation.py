"""Losses of a run whose passes have unequal numbers of labels, beside those of a plain loop (one JSON line).

    python bench/accumulation.py [--steps 100]

The loop is what transformers' Trainer does with ``num_items_in_batch``: summed cross entropies of four passes, divided
by the labels of all of them.  It runs transformers' Llama over each document by itself, in float32 on the CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from caramba_plugins_standard.training.windows import windows_of
from torch.nn import functional as F

from caramba_core.manifest.load import load_manifest
from caramba_core.run.experiment import Experiment

__all__ = ["losses_of_caramba", "losses_of_plain_loop", "write"]

PASSES, BATCH, CONTEXT, LR, END = 4, 2, 24, 3e-3, 0

MANIFEST: Final = f"""
version: 1
name: accumulation
model: {{from: teacher}}
groups:
  - name: main
    teacher: {{source: llama}}
    data: {{train: {{type: tokens, path: tokens.npy, documents: true}}}}
    runs:
      - id: train
        mode: train
        steps: STEPS
        train: {{strategy: pretrain, device: cpu, lr: {LR}, batch_size: {BATCH}, accumulate: {PASSES},
                context: {CONTEXT}}}
"""


def write(folder: Path, steps: int) -> None:
    """A tiny Llama, documents of very different lengths, and the manifest."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "llama")
    drawn = np.random.default_rng(0)
    ids: list[int] = []
    while len(ids) < 40_000:
        words = drawn.integers(1, 64, 4)
        ids += [*np.resize(words, int(drawn.choice([1, 3, 9, 40, 120]))).tolist(), END]
        ids += [END] * int(drawn.choice([0, 0, 30]))  # which has nothing to learn
    np.save(folder / "tokens.npy", np.array(ids, np.uint16))
    (folder / "tokens.npy.json").write_text(json.dumps({"end_of_text": END}))
    (folder / "m.yml").write_text(MANIFEST.replace("STEPS", str(steps)))


def losses_of_caramba(folder: Path) -> list[float]:
    """The losses that a run records, step by step."""
    Experiment(load_manifest(str(folder / "m.yml")), output=folder / "runs").complete()
    lines = (folder / "runs/accumulation/main/train/metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def losses_of_plain_loop(folder: Path, steps: int) -> tuple[list[float], list[list[int]]]:
    """The losses of the same training by hand, and how many labels each pass had."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder / "llama").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0)
    losses, counts = [], []
    for number, passes in enumerate(_batches(folder, steps)):
        for group in optimizer.param_groups:
            group["lr"] = LR * 0.5 * (1 + math.cos(math.pi * number / steps))
        documents = [[part for row in each.tolist() for part in _documents(row)] for each in passes]
        counts.append([sum(len(part) - 1 for part in each) for each in documents])
        optimizer.zero_grad()
        total = 0.0
        for each in documents:
            sums = [
                F.cross_entropy(model(torch.tensor([part[:-1]])).logits[0], torch.tensor(part[1:]), reduction="sum")
                for part in each
                if len(part) > 1
            ]
            if sums:
                loss = torch.stack(sums).sum() / sum(counts[-1])
                loss.backward()
                total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(total)
    return losses, counts


def _batches(folder: Path, steps: int) -> Iterator[torch.Tensor]:
    """Token ids of each step, ``[passes, B, T + 1]``, in the order of the run."""
    experiment = Experiment(load_manifest(str(folder / "m.yml")), output=folder / "runs")
    [(group, run)] = experiment.chosen
    context: Any = experiment.finished_context(group, run)
    windows = windows_of(context, CONTEXT)
    for step in range(steps):
        yield windows.batch(step * PASSES * BATCH, PASSES * BATCH).view(PASSES, BATCH, -1)


def _documents(row: list[int]) -> list[list[int]]:
    """The documents of a row, each up to the token that ends it."""
    ends = [place + 1 for place, token in enumerate(row) if token == END]
    return [row[first:last] for first, last in zip([0, *ends], [*ends, len(row)], strict=True) if first < last]


def main() -> None:
    """Print how far the losses of both are apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)  # more of them wait for each other at this size
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, steps)
        ours = losses_of_caramba(folder)
        theirs, counts = losses_of_plain_loop(folder, steps)
    apart = [abs(one - other) / other for one, other in zip(ours, theirs, strict=True)]
    print(
        json.dumps(
            {
                "steps": steps,
                "passes": PASSES,
                "labels_of_a_pass": [min(map(min, counts)), max(map(max, counts))],
                "first_and_last_loss": [ours[0], ours[-1]],
                "largest_relative_difference": max(apart),
                "dtype": "float32",
                "device": "cpu",
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
