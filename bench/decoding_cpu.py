"""Decoding on a CPU: SmolLM2-135M by caramba beside the same weights by transformers' ``generate``, and DBA beside it.

    python bench/decoding_cpu.py [WEIGHTS] [--sides transformers,gqa,dba2,dba4] [--prompt 512] [--new 128]
                                 [--repeats 5] [--threads 2]

WEIGHTS, a GGUF file or a Hugging Face folder (``.demo/SmolLM2-135M-Instruct.Q4_1.gguf``), is exported as a folder of
float32 for transformers.  ``gqa`` is the same weights in caramba; ``dba2`` and ``dba4`` have the sizes of the preset's
groups ``x2`` and ``x4``, and random weights.  All are float32, in one process, and take turns: each continues the same
random tokens greedily, ``--repeats`` times behind a warm-up.  A line of JSON a side: median tokens/s from the first new
token to the last, all of them, the share of the machine's read speed that reading weights and cache at this pace makes,
and ``ratio``, to transformers for ``gqa`` and to ``gqa`` for the others: the median over turns, so that both sides of
each ratio ran one after the other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from caramba_plugins_llama.export import export
from caramba_plugins_standard.decoding import Decoder
from caramba_plugins_standard.generation import continuations
from caramba_plugins_standard.modes import Sampling
from caramba_plugins_standard.opening import load_checkpoint, open_checkpoint
from caramba_plugins_standard.sampling import Sampler

import caramba

WEIGHTS = ".demo/SmolLM2-135M-Instruct.Q4_1.gguf"
PRESET = "smollm2_135m_dba"


class Watch:
    """What transformers hands each token to: times of those behind the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: Any) -> None:
        """The prompt, then one token after the other."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Behind the last token."""


def theirs(folder: Path) -> tuple[Any, Callable[[torch.Tensor, int], tuple[list[float], list[int]]]]:
    """transformers' model, and its ``generate``: times and ids of new tokens."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # no side ends early

    def run(ids: torch.Tensor, new: int) -> tuple[list[float], list[int]]:
        watch = Watch()
        seen = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=seen, max_new_tokens=new, do_sample=False, streamer=watch)
        return watch.times[1:], out[0, ids.shape[1] :].tolist()

    return model, run


def ours(side: str, folder: Path) -> tuple[Any, Callable[[torch.Tensor, int], tuple[list[float], list[int]]]]:
    """caramba's model and the loop of its ``generate``."""
    if side == "gqa":
        model = load_checkpoint(open_checkpoint(str(folder)), "cpu", "float32")
    else:
        model = caramba.load(PRESET).build(f"x{side[3:]}", device="cpu", seed=0)
    model = model.eval().requires_grad_(False)

    def run(ids: torch.Tensor, new: int) -> tuple[list[float], list[int]]:
        decoder = Decoder(model, batch=1, capacity=ids.shape[1] + new)
        sampler = Sampler(Sampling(), [0], ids, model.graph.vocab_size)
        tokens, times = [], []
        for token in continuations(decoder, decoder.prefill(ids), new, sampler):
            tokens.append(int(token))
            times.append(time.perf_counter())
        return times, tokens

    return model, run


def read_speed() -> float:
    """Bytes a second that a sum of a gigabyte of float32 reads, the best of some."""
    numbers, best = torch.ones(2**28), 0.0
    for _ in range(5):
        began = time.perf_counter()
        numbers.sum()
        best = max(best, 4 * numbers.numel() / (time.perf_counter() - began))
    return best


def main() -> None:
    """Let the sides take turns and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", nargs="?", default=WEIGHTS)
    parser.add_argument("--sides", default="transformers,gqa,dba2,dba4")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    speed = read_speed()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "threads": options.threads}
    print(json.dumps({**versions, "prompt": options.prompt, "new": options.new, "read_GBs": round(speed / 1e9, 1)}))
    ids = torch.randint(1000, 40000, (1, options.prompt), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "weights"
        export(options.weights, folder, dtype="float32")
        names = options.sides.split(",")
        sides = {name: theirs(folder) if name == "transformers" else ours(name, folder) for name in names}
        rates: dict[str, list[float]] = {name: [] for name in names}
        texts = {}
        for turn in range(options.repeats + 1):
            for name, (_, run) in sides.items():
                times, texts[name] = run(ids, options.new)
                if turn:
                    rates[name].append((len(times) - 1) / (times[-1] - times[0]))
    for name, (model, _) in sides.items():
        against = rates.get("transformers" if name == "gqa" else "gqa") if name != "transformers" else None
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        line = {
            "side": name,
            "tokens_per_s": round(statistics.median(rates[name]), 2),
            "weights_MB": round(weights / 1e6),
            "read_share": round(weights * statistics.median(rates[name]) / speed, 3),
            "ratio": None
            if against is None
            else round(statistics.median(a / b for a, b in zip(rates[name], against, strict=True)), 3),
            "all": [round(rate, 2) for rate in rates[name]],
        }
        if name == "gqa" and "transformers" in texts:
            line["same_text"] = texts[name] == texts["transformers"]
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
