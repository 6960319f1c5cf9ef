"""Decoding on a CPU: SmolLM2-135M by caramba beside the same weights by transformers' ``generate``, and DBA beside it.

    python bench/decoding_cpu.py [WEIGHTS] [--sides transformers,gqa,dba2,dba4] [--prompt 512] [--new 128]
                                 [--repeats 5] [--threads 2]

WEIGHTS, a GGUF file or a Hugging Face folder (``.demo/SmolLM2-135M-Instruct.Q4_1.gguf``), is exported as a folder of
float32 for transformers; ``random`` draws weights of that shape instead.  ``gqa`` is the same weights in caramba;
``dba2`` and ``dba4`` have the sizes of the preset's groups, ``windows`` is the preset of windows and DBA with caches in
float32, ``windows:few`` with its own, and their weights are random.  All are float32, in one process, and take turns:
each continues the same random tokens greedily, ``--repeats`` times behind a warm-up.  A line of JSON each: median
tokens/s from the first new token to the last, all of them, the share of the machine's read speed that reading the
weights at this pace makes, and ``ratio``, to transformers for ``gqa`` and to ``gqa`` for the others: the median over
turns, so that both sides of each ratio ran one after the other.  ``cpu_ratio`` compares processor time: with
``--threads 1`` it holds on a busy machine too.
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
from typing import Any, TypeAlias

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
STUDENTS: dict[str, tuple[str, str, dict[str, str]]] = {
    "dba2": ("smollm2_135m_dba", "x2", {}),
    "dba4": ("smollm2_135m_dba", "x4", {}),
    "windows": ("smollm2_135m_windows_dba", "x7", {"vars.cache": "full", "vars.window_cache": "full"}),
    "windows:few": ("smollm2_135m_windows_dba", "x7", {}),
}
"""Preset, group and settings by the names of sides."""


class Watch:
    """What transformers hands each token to, the prompt first: when it came, by the clock and in processor time."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def put(self, _: Any) -> None:
        """A token came."""
        self.times.append((time.perf_counter(), time.process_time()))

    def end(self) -> None:
        """The last one did."""

    def rates(self, first: int) -> tuple[float, float]:
        """Tokens a second behind number ``first``, by either."""
        began, ended = self.times[first], self.times[-1]
        wall, processor = ((len(self.times) - 1 - first) / (b - a) for a, b in zip(began, ended, strict=True))
        return wall, processor


Run: TypeAlias = Callable[[torch.Tensor, int], tuple[tuple[float, float], list[int]]]


def theirs(folder: Path) -> tuple[Any, Run]:
    """transformers' model, and its ``generate``: rates and new ids."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # no side ends early

    def run(ids: torch.Tensor, new: int) -> tuple[tuple[float, float], list[int]]:
        watch = Watch()
        seen = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=seen, max_new_tokens=new, do_sample=False, streamer=watch)
        return watch.rates(1), out[0, ids.shape[1] :].tolist()

    return model, run


def ours(side: str, folder: Path) -> tuple[Any, Run]:
    """caramba's model and the loop of its ``generate``."""
    if side == "gqa":
        model = load_checkpoint(open_checkpoint(str(folder)), "cpu", "float32")
    else:
        preset, group, settings = STUDENTS[side]
        model = caramba.load(preset, set=settings).build(group, device="cpu", seed=0)
    model.requires_grad_(False).train(False)

    def run(ids: torch.Tensor, new: int) -> tuple[tuple[float, float], list[int]]:
        decoder, watch = Decoder(model, batch=1, capacity=ids.shape[1] + new), Watch()
        sampler, tokens = Sampler(Sampling(), [0], ids, model.graph.vocab_size), []
        for token in continuations(decoder, decoder.prefill(ids), new, sampler):
            tokens.append(int(token))
            watch.put(token)
        return watch.rates(0), tokens

    return model, run


def write_weights(source: str, folder: Path) -> None:
    """A Hugging Face folder of float32."""
    if source != "random":
        export(source, folder, dtype="float32")
        return
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


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
    sizes = {"prompt": options.prompt, "new": options.new, "read_GBs": round(speed / 1e9, 1)}
    print(json.dumps({**versions, "weights": Path(options.weights).name, **sizes}), flush=True)
    ids = torch.randint(1000, 40000, (1, options.prompt), generator=torch.Generator().manual_seed(0))
    names = options.sides.split(",")
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    texts = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "weights"
        write_weights(options.weights, folder)
        sides = {name: theirs(folder) if name == "transformers" else ours(name, folder) for name in names}
        for turn in range(options.repeats + 1):
            for name, (_, run) in sides.items():
                rate, texts[name] = run(ids, options.new)
                if turn:
                    rates[name].append(rate)
    for name, (model, _) in sides.items():
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        middle = statistics.median(wall for wall, _ in rates[name])
        line: dict[str, Any] = {
            "side": name,
            "tokens_per_s": round(middle, 2),
            "weights_MB": round(weights / 1e6),
            "read_share": round(weights * middle / speed, 3),
            "all": [round(wall, 2) for wall, _ in rates[name]],
        }
        against = "transformers" if name == "gqa" else "gqa"
        if against in rates and name not in (against, "transformers"):
            turns = list(zip(rates[name], rates[against], strict=True))
            for words, clock in (("ratio", 0), ("cpu_ratio", 1)):
                line[words] = round(statistics.median(one[clock] / other[clock] for one, other in turns), 3)
        if name == "gqa" and "transformers" in texts:
            line["same_text"] = texts[name] == texts["transformers"]
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
