"""Time and memory of loading a checkpoint: caramba against ``transformers.from_pretrained``.

    python bench/loading.py FOLDER [FOLDER ...] [--random-1b SCRATCH] [--runs 5]

Every load runs in a process of its own, both libraries in turn, from the page cache.  transformers maps the file and
reads it as the weights are first used; caramba reads every value first, to check for NaN and infinity.  So both are
measured twice: to the end of the load, and to the end of a first pass over 8 tokens.  Memory is the highest resident
set minus that before the load, libraries imported (``/proc``, so Linux alone).  ``--random-1b`` writes a folder of the
size of Llama-3.2-1B in bfloat16 (2.5 GB) under SCRATCH first, and removes it at the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LLAMA_1B: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": True,
}


def resident(field: str) -> int:
    """Bytes of a field of ``/proc/self/status``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit("loading: memory is measured through /proc, which this system does not have")


OURS, PEER = "caramba", "transformers"


def measure(which: str, folder: Path) -> None:
    """Load once in this process; print seconds and bytes as JSON."""
    import torch

    if which == PEER:
        import transformers.models.llama.modeling_llama  # noqa: F401
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()

        def load() -> torch.nn.Module:
            model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
            return model
    else:
        import caramba_plugins_llama.hf_folder
        import caramba_plugins_llama.mapped_file  # noqa: F401
        import caramba_plugins_standard.catalogue
        import caramba_plugins_standard.gqa_module  # noqa: F401

        from caramba_core.loading import find_loader
        from caramba_core.lowering import lower
        from caramba_core.manifest.structure import structure_model
        from caramba_core.nn.build import build
        from caramba_core.nn.filling import load_weights

        def load() -> torch.nn.Module:
            checkpoint = find_loader(folder)
            graph = lower(structure_model(checkpoint.model(), origin=str(folder)))
            stored = {"BF16": torch.bfloat16, "F16": torch.float16}.get(checkpoint.layout()[0].dtype, torch.float32)
            model = build(graph, dtype=stored)
            load_weights(model, checkpoint)
            return model

    tokens = torch.arange(8)[None]
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    start, busy = time.perf_counter(), time.process_time()
    model = load()

    def so_far(key: str) -> dict[str, float]:
        return {
            key: time.perf_counter() - start,
            f"{key}_busy": time.process_time() - busy,
            f"{key}_peak": resident("VmHWM") - before,
        }

    found = so_far("load")
    with torch.no_grad():
        model(tokens)
    found |= so_far("used")
    sizes = [parameter.numel() * parameter.element_size() for parameter in model.parameters()]
    print(json.dumps({**found, "model": sum(sizes), "largest": max(sizes)}))


def random_1b(scratch: Path) -> Path:
    """A folder of the size of Llama-3.2-1B, written without holding it twice."""
    import torch
    import transformers

    folder = Path(tempfile.mkdtemp(dir=scratch))
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMA_1B, dtype="bfloat16")
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def compare(folder: Path, runs: int) -> None:
    """Print two table rows per library."""
    found: dict[str, list[dict[str, Any]]] = {OURS: [], PEER: []}
    for _ in range(runs):
        for which, results in found.items():
            command = [sys.executable, __file__, "--measure", which, str(folder)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    sizes = found[OURS][0]
    bound = sizes["model"] + sizes["largest"] + 300e6
    print(f"{folder.name}: model {sizes['model'] / 1e6:.0f} MB; model + largest tensor + 300 MB: {bound / 1e6:.0f} MB")
    for which, results in found.items():
        median = {key: statistics.median(result[key] for result in results) for key in results[0]}
        for until, key in (("loaded", "load"), ("first pass", "used")):
            print(
                f"  {which:12} {until:11} {median[key]:6.3f} s ({median[key + '_busy']:.2f} s of processor)"
                f"   peak +{median[key + '_peak'] / 1e6:.0f} MB"
            )


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--random-1b", type=Path, metavar="SCRATCH")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--measure", choices=[OURS, PEER], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.folders[0])
        return
    for folder in options.folders:
        compare(folder, options.runs)
    if options.random_1b is not None:
        folder = random_1b(options.random_1b)
        try:
            compare(folder, options.runs)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
