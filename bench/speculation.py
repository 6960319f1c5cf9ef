"""Speculative decoding beside the model alone, on one GPU: Llama-3.2-1B shape, bfloat16, random weights.

    python bench/speculation.py [--shape 1b|tiny] [--layers 2] [--strength 0.02,0.1] [--draft-tokens 0,8]
                                [--prompt 2048] [--new 512] [--repeats 3] [--device cuda]

There are no real weights of this shape here, so the draft is built to agree: it is the model's first ``--layers``
layers with the model's norm and head, and what the model's other layers add to the residual stream is multiplied by
``--strength``.  At 0 both say the same; larger numbers make the model disagree with its draft more often, and
``accepted`` says how often it does not.  Both sides are what ``caramba generate`` runs, with and without ``--draft``:
caches through ``Decoder``, steps recorded on CUDA, not compiled.  0 draft tokens let the session choose, which is the
command's default.  Each takes its turn ``--repeats`` times behind a warm-up.  A line of JSON each: median tokens/s from
the first new token to the last, greedy and drawn at temperature 1, and ``ratio`` to the model alone.  ``same_text``
compares greedy texts; in half precision two tokens may tie, and rows of one product round otherwise than one row.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from types import SimpleNamespace
from typing import Any

import torch
from caramba_plugins_decode.session import Session
from caramba_plugins_decode.speculative import SpeculativeSession
from caramba_plugins_standard.modes import Sampling
from decoding import SHAPES, ours

from caramba_core.nn.language_model import LanguageModel


@torch.no_grad()
def pair(shape: dict[str, int], layers: int, strength: float, device: str) -> tuple[LanguageModel, LanguageModel]:
    """A model and its draft, which shares the storage of its weights."""
    torch.manual_seed(0)
    model = ours("gqa", shape, device)
    draft = ours("gqa", {**shape, "layers": layers}, device)
    parameters = dict(model.named_parameters())
    for name, parameter in draft.named_parameters():
        parameter.data = parameters[name].data
    for name, parameter in parameters.items():
        later = name.startswith("blocks.") and int(name.split(".")[1]) >= layers
        if later and name.endswith(("o_proj", "down_proj")):
            parameter.mul_(strength)
    return model, draft


def timed(session: Any, prompt: list[int], new: int, sampling: Sampling) -> tuple[float, list[int]]:
    """Tokens/s behind the first, and the tokens."""
    tokens = session.tokens(prompt, new, sampling, 0)
    text = [next(tokens)]
    began = time.perf_counter()
    text += tokens
    return (len(text) - 1) / (time.perf_counter() - began), text


def main() -> None:
    """Let the model alone and the model with its draft take turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="1b", choices=SHAPES)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--strength", default="0.02,0.1")
    parser.add_argument("--draft-tokens", default="0,8")
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--new", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    print(json.dumps({"device": name, "torch": torch.__version__, "shape": options.shape, "layers": options.layers}))
    prompt = torch.randint(shape["vocabulary"], (options.prompt,), generator=torch.Generator().manual_seed(1)).tolist()
    for strength in map(float, options.strength.split(",")):
        model, draft = pair(shape, options.layers, strength, options.device)
        one, other = (SimpleNamespace(model=each, graph=each.graph, storage=None) for each in (model, draft))
        for words, sampling in (("greedy", Sampling()), ("temperature 1", Sampling(temperature=1.0))):
            alone: Any = Session(one)  # type: ignore[arg-type]
            sides = {
                count: SpeculativeSession(one, other, count or None)  # type: ignore[arg-type]
                for count in map(int, options.draft_tokens.split(","))
            }
            rates: dict[int | None, list[float]] = {None: [], **{count: [] for count in sides}}
            texts: dict[int | None, list[int]] = {}
            for turn in range(options.repeats + 1):
                for count, session in ((None, alone), *sides.items()):
                    rate, texts[count] = timed(session, prompt, options.new, sampling)
                    if turn:
                        rates[count].append(rate)
            own = statistics.median(rates[None])
            for count, session in sides.items():
                line = {
                    "strength": strength,
                    "sampling": words,
                    "draft_tokens": count or "chosen",
                    "accepted": round(session.accepted / max(session.drafted, 1), 3),
                    "tokens_per_s": round(statistics.median(rates[count]), 1),
                    "alone": round(own, 1),
                    "ratio": round(statistics.median(rates[count]) / own, 3),
                    "same_text": texts[count] == texts[None] if sampling.greedy else None,
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
