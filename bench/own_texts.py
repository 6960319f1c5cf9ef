"""Texts that a teacher writes by itself, behind a token drawn evenly from its vocabulary: a part of a mixture.

    python bench/own_texts.py DATA [--windows 1280] [--temperature 1.0] [--batch-size 256] [--device cuda]

``train_own.npy`` is added to DATA: uint16, windows of 1,024 tokens.  What no text of the mixture shows the teacher may
still know, and such texts show some of it without a text of that kind (LLM-QAT, Liu et al. 2023, section 2.1).
Everything follows from the seed, 0, on one device.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from caramba_plugins_decode.source import Opening, open_text_model
from caramba_plugins_standard.generation import generate
from caramba_plugins_standard.modes import Sampling

WINDOW = 1024
"""Tokens of a text."""

SPECIAL = 17
"""Ids of SmolLM2's vocabulary that begin it and stand for no text."""


def main() -> None:
    """Write the array."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--windows", type=int, default=1280)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    asked = parser.parse_args()
    teacher = asked.data / "SmolLM2-135M-Instruct.Q4_1.gguf"
    model = open_text_model(str(teacher), Opening(device=asked.device, dtype=asked.dtype)).model
    random, device = np.random.default_rng(0), model.head_weight.device
    sampling, begun = Sampling(temperature=asked.temperature), time.perf_counter()
    texts: list[np.ndarray] = []
    for at in range(0, asked.windows, asked.batch_size):
        first = random.integers(SPECIAL, model.graph.vocab_size, (min(asked.batch_size, asked.windows - at), 1))
        out = generate(model, torch.from_numpy(first).to(device), WINDOW - 1, sampling=sampling, seed=at)
        texts.append(out.cpu().numpy().astype(np.uint16))
    path = asked.data / "train_own.npy"
    with path.open("wb") as file:
        np.save(file, np.concatenate(texts).reshape(-1))
    seconds = round(time.perf_counter() - begun, 1)
    print(json.dumps({"event": "written", "file": path.name, "tokens": asked.windows * WINDOW, "seconds": seconds}))


if __name__ == "__main__":
    main()
