"""An exported student in llama.cpp beside its teacher's own GGUF: tokens, perplexity, cache and speed on a CPU.

    python bench/serving.py tokens STUDENT.gguf TEACHER.gguf --text heldout.npy     # in f32: greedy tokens, perplexity
    python bench/serving.py speed STUDENT.gguf TEACHER.gguf [--context 4096] [--threads 2] [--rounds 3]

Each line of JSON is one measurement of one file.  llama.cpp is the library inside of the package ``xllamacpp`` (tried
with 2026.10.11549), asked through its C interface, each file in a process of its own.  ``tokens``: 200 greedy tokens
behind a prompt, and the likelihood of windows of held-out tokens, beside what caramba's own reader gives.  ``speed``:
decode steps behind a cache of ``--context`` tokens, prefill of as many tokens, and the cache that llama.cpp reports;
the files take turns, and the medians of the rounds are compared.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import math
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_CACHE_TYPES = 104
"""Bytes from the start of a context's parameters to the types of cached keys and values."""
_FLASH_ATTENTION = 52
TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "q4_0": 2}


class _Parameters(ctypes.Structure):
    """Of a model or a context, with room for fields that later versions add."""

    _fields_ = (("sizes", ctypes.c_uint32 * 4), ("rest", ctypes.c_uint8 * 1008))


class _Batch(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embedding", ctypes.c_void_p),
        ("position", ctypes.POINTER(ctypes.c_int32)),
        ("sequences", ctypes.POINTER(ctypes.c_int32)),
        ("sequence", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("wanted", ctypes.POINTER(ctypes.c_int8)),
    )


class LlamaCpp:
    """A file in llama.cpp; ``said`` is its log."""

    def __init__(self, path: str, *, context: int, threads: int, cache: str, flash: int = -1) -> None:
        folder = Path(str(importlib.util.find_spec("xllamacpp").origin)).parent  # type: ignore[union-attr]
        self.library = ctypes.CDLL(str(next(folder.glob("*.so"))))
        self.said: list[str] = []
        self.log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(
            lambda level, text, data: self.said.append(text.decode(errors="replace"))
        )
        self.library.llama_log_set(self.log, None)
        self.library.llama_backend_init()
        pointer, whole = ctypes.c_void_p, ctypes.c_int32
        settings = self.function("llama_model_default_params", _Parameters)()
        self.model = self.function("llama_model_load_from_file", pointer, ctypes.c_char_p, _Parameters)(
            path.encode(), settings
        )
        assert self.model, "".join(self.said)[-800:]
        settings = self.function("llama_context_default_params", _Parameters)()
        settings.sizes[:3] = [context, 512, 512]
        types = (whole * 2).from_address(ctypes.addressof(settings) + _CACHE_TYPES)
        assert list(types) == [1, 1], "this version lays its parameters out otherwise"
        types[:] = [TYPES[cache]] * 2
        whole.from_address(ctypes.addressof(settings) + _FLASH_ATTENTION).value = flash
        self.context = self.function("llama_init_from_model", pointer, pointer, _Parameters)(self.model, settings)
        assert self.context, "".join(self.said)[-800:]
        self.function("llama_set_n_threads", None, pointer, whole, whole)(self.context, threads, threads)
        vocabulary = self.function("llama_model_get_vocab", pointer, pointer)(self.model)
        self.size = self.function("llama_vocab_n_tokens", whole, pointer)(vocabulary)
        self.batch = self.function("llama_batch_init", _Batch, whole, whole, whole)(512, 0, 1)
        self._decode = self.function("llama_decode", whole, pointer, _Batch)
        self._row = self.function("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), pointer, whole)
        self._memory = self.function("llama_get_memory", pointer, pointer)(self.context)

    def function(self, name: str, result: Any, *arguments: Any) -> Any:
        """One of the C interface."""
        found = getattr(self.library, name)
        found.restype, found.argtypes = result, arguments
        return found

    def forget(self) -> None:
        """Empty the cache."""
        self.function("llama_memory_clear", None, ctypes.c_void_p, ctypes.c_bool)(self._memory, True)

    def take(self, tokens: list[int], at: int, *, every: bool = False) -> list[Any]:
        """Feed tokens from a position on, 512 at a time; arrays of the logits behind the last, or behind every one."""
        import numpy as np

        rows = []
        for first in range(0, len(tokens), 512):
            part = tokens[first : first + 512]
            self.batch.count = len(part)
            for place, token in enumerate(part):
                last = first + place == len(tokens) - 1
                self.batch.token[place], self.batch.position[place] = token, at + first + place
                self.batch.sequences[place], self.batch.wanted[place] = 1, int(every or last)
                self.batch.sequence[place][0] = 0
            assert self._decode(self.context, self.batch) == 0, "".join(self.said)[-800:]
            wanted = [place for place in range(len(part)) if self.batch.wanted[place]]
            rows += [np.ctypeslib.as_array(self._row(self.context, place), (self.size,)).copy() for place in wanted]
        return rows

    def cache_bytes(self) -> float:
        """MiB of keys and values, as its log reports."""
        found = re.findall(r"KV buffer size =\s*([\d.]+) MiB", "".join(self.said))
        return sum(map(float, found))


def greedy(path: str, prompt: list[int], count: int, threads: int) -> list[int]:
    """Greedy tokens of llama.cpp, caches and sums in 32 bits."""
    model = LlamaCpp(path, context=len(prompt) + count + 8, threads=threads, cache="f32", flash=0)
    found, rows = [], model.take(prompt, 0)
    for step in range(count):
        found.append(int(rows[-1].argmax()))
        rows = model.take(found[-1:], len(prompt) + step)
    return found


def perplexity(path: str, windows: list[list[int]], threads: int) -> float:
    """Over all tokens of windows but their first ones."""
    import numpy as np

    model = LlamaCpp(path, context=len(windows[0]) + 8, threads=threads, cache="f32", flash=0)
    total = count = 0.0
    for window in windows:
        model.forget()
        rows = model.take(window[:-1], 0, every=True)
        for row, wanted in zip(rows, window[1:], strict=True):
            wide = row.astype(np.float64)
            top = wide.max()
            total += top + math.log(np.exp(wide - top).sum()) - wide[wanted]
            count += 1
    return math.exp(total / count)


def speed(path: str, context: int, steps: int, threads: int, cache: str) -> dict[str, float]:
    """Tokens per second of prefill, and of decode steps behind a full context."""
    model = LlamaCpp(path, context=context + steps + 8, threads=threads, cache=cache)
    tokens = [100 + index * 7919 % 40000 for index in range(context)]
    model.take(tokens[:64], 0)
    model.forget()
    began = time.perf_counter()
    model.take(tokens, 0)
    prefill = context / (time.perf_counter() - began)
    took = []
    for step in range(steps):
        began = time.perf_counter()
        model.take([200 + step], context + step)
        took.append(time.perf_counter() - began)
    return {
        "prefill_tokens_per_s": round(prefill, 1),
        "decode_tokens_per_s": round(1 / statistics.median(took), 2),
        "cache_MiB": model.cache_bytes(),
        "file_MB": round(Path(path).stat().st_size / 1e6, 1),
    }


def _apart(name: str, *arguments: Any) -> Any:
    """A function of this file in a process of its own."""
    asked = json.dumps([name, arguments])
    done = subprocess.run([sys.executable, __file__, "one", asked], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout)


def compare_tokens(
    files: list[str], text: str, prompt: int, count: int, windows: int, width: int, threads: int
) -> None:
    """What llama.cpp and caramba's own reader say of the same files."""
    import numpy as np
    import torch
    from caramba_plugins_standard.loading import find_loader, lower_checkpoint
    from caramba_plugins_standard.loading.filling import load_weights

    from caramba_core.nn.build import build

    ids = np.load(text, mmap_mode="r")
    cut = [ids[first : first + width].astype(int).tolist() for first in range(0, windows * width, width)]
    start = ids[:prompt].astype(int).tolist()
    for path in files:
        checkpoint = find_loader(Path(path))
        model = build(lower_checkpoint(checkpoint), dtype=torch.float32).eval().requires_grad_(False)
        load_weights(model, checkpoint)
        theirs = _apart("greedy", path, start, count, threads)
        with torch.no_grad():  # one pass over llama.cpp's text: its tokens are the likeliest where all of them agree
            ours = model(torch.tensor([start + theirs]))[0].argmax(-1)[prompt - 1 : -1].tolist()
        same = next((place for place, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), count)
        likelihoods = []
        for window in cut:
            with torch.no_grad():
                rows = model(torch.tensor([window[:-1]]))[0].log_softmax(-1)
            likelihoods.append(rows[range(width - 1), window[1:]].double().mean().item())
        mine, other = math.exp(-statistics.mean(likelihoods)), _apart("perplexity", path, cut, threads)
        line = {
            "file": Path(path).name,
            "greedy_tokens_equal": same,
            "of": count,
            "perplexity_caramba": round(mine, 4),
            "perplexity_llama_cpp": round(other, 4),
            "apart_percent": round(100 * abs(other / mine - 1), 4),
            "windows": f"{windows} x {width}",
        }
        print(json.dumps(line), flush=True)


def compare_speed(files: list[str], context: int, steps: int, threads: int, cache: str, rounds: int) -> None:
    """The files in turns; medians of the rounds, over those of the last file."""
    found: dict[str, list[dict[str, float]]] = {path: [] for path in files}
    for round_ in range(rounds):
        for path in files if round_ % 2 == 0 else files[::-1]:
            found[path].append(_apart("speed", path, context, steps, threads, cache))
            about = {"file": Path(path).name, "round": round_, "context": context, "threads": threads, "cache": cache}
            print(json.dumps({**about, **found[path][-1]}), flush=True)
    medians = {
        path: {key: statistics.median(one[key] for one in lines) for key in lines[0]} for path, lines in found.items()
    }
    *students, teacher = files
    for path in students:
        ratios = {key: round(medians[path][key] / medians[teacher][key], 3) for key in medians[path]}
        print(json.dumps({"file": Path(path).name, "over": Path(teacher).name, **ratios}), flush=True)


def main() -> None:
    """Compare files, or do one thing with one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["tokens", "speed", "one"])
    parser.add_argument("files", nargs="+", help="students, then the teacher")
    parser.add_argument("--text", help="tokens: an array of held-out token ids (.npy)")
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", default="f16", choices=TYPES)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.what == "one":
        name, arguments = json.loads(options.files[0])
        print(json.dumps({"greedy": greedy, "perplexity": perplexity, "speed": speed}[name](*arguments)))
    elif options.what == "tokens":
        compare_tokens(
            options.files,
            options.text,
            options.prompt,
            options.count,
            options.windows,
            options.width,
            options.threads,
        )
    else:
        compare_speed(options.files, options.context, options.steps, options.threads, options.cache, options.rounds)


if __name__ == "__main__":
    main()
