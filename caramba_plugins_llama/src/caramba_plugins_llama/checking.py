"""Whether an exported model gives a text the logits that caramba's own model gives it."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from caramba_plugins_standard.loading import find_loader, lower_checkpoint
from caramba_plugins_standard.loading.filling import load_weights
from caramba_plugins_standard.training.rounding import RoundingCache
from torch import Tensor

from caramba_core.errors import InputError, VerificationFailed
from caramba_core.graph import Graph
from caramba_core.nn.build import build
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel

__all__ = ["check_logits"]

_TOKENS: Final = 256
"""Of the text, at most."""
_PLACES: Final = 8
"""Tokens of the text behind which llama.cpp is asked what comes next."""

_ASKED: Final = 100
"""Tokens whose likelihood it is asked for."""

_BOUNDS: Final = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.05, "q8_0": 0.1}
"""How far logits may lie apart, as a share of their spread: what a type rounds away, and no more."""


@torch.no_grad()
def check_logits(
    text: str, written: Path, graph: Graph, tensors: Mapping[str, Tensor], *, kind: str, code: bool, context: int
) -> str:
    """Compare the logits of ``text`` in the target's own library, where it is installed, else by caramba's reader.

    ``graph`` and ``tensors`` are the model as it was; ``kind`` is the type that ``written`` stores, ``code`` whether
    it brings code along, ``context`` the longest text that it is made for.  Says what was compared; raises
    :class:`VerificationFailed` where it is not the same.
    """
    tokenizer = find_loader(written).tokenizer()
    if tokenizer is None:
        raise InputError("--check needs a tokenizer, and the model comes without one", hint="name one with --origin")
    ids = tokenizer.encode(text)[: min(context - 1, _TOKENS)]
    if len(ids) < 2:
        raise InputError(f"--check needs a text of at least two tokens, and {text!r} has {len(ids)}")
    rounded = code and RoundingCache(graph).rounds
    stored = {name: _rounded_to(kind, tensor) for name, tensor in tensors.items()} if rounded else tensors
    ours = _of_caramba(graph, stored, ids, read_back=rounded).log_softmax(-1)
    if written.is_file():
        asked, apart = _apart_from_gguf(written, ids, ours)
    else:
        asked, theirs = _of_folder(written, ids, code, read_back=rounded)
        apart = theirs.log_softmax(-1) - ours
    spread = ours.std().item()
    largest, share = apart.abs().max().item(), apart.pow(2).mean().sqrt().item() / spread
    said = (
        f"{len(ids)} tokens in {asked}: log-probabilities differ by {largest:.2g} at most, {share:.2g} of their "
        "spread on average"
    )
    if not share <= _BOUNDS[kind]:
        raise VerificationFailed(
            f"the exported model is another one: {said}", expected=f"at most {_BOUNDS[kind]} of it in {kind}"
        )
    return said


def _rounded_to(kind: str, tensor: Tensor) -> Tensor:
    """Weights as the folder stores them: other ones would be rounded to other codes of the cache."""
    return tensor.to(getattr(torch, kind)) if tensor.is_floating_point() else tensor


def _of_caramba(graph: Graph, tensors: Mapping[str, Tensor], ids: list[int], *, read_back: bool = False) -> Tensor:
    """Logits ``[T, V]`` of the model as it was; see :func:`_logits`."""
    model = build(graph, dtype=torch.float32).eval().requires_grad_(False)
    model.load_state_dict(dict(tensors))
    return _logits(model, ids, read_back=read_back)


def _of_reader(written: Path, ids: list[int], *, read_back: bool = False) -> Tensor:
    checkpoint = find_loader(written)
    model = build(lower_checkpoint(checkpoint), dtype=torch.float32).eval().requires_grad_(False)
    load_weights(model, checkpoint)
    return _logits(model, ids, read_back=read_back)


def _logits(model: LanguageModel, ids: list[int], *, read_back: bool) -> Tensor:
    """``[T, V]`` in float32; with ``read_back`` of keys and values as the attentions' cache stores them, in float64.

    There no sum's order decides which of two codes is nearer.
    """
    tokens = torch.tensor([ids])
    if not read_back:
        logits: Tensor = model(tokens)[0]
        return logits
    model = model.double()
    cache = model.new_cache(1, capacity=len(ids))
    return model.logits(model.hidden(tokens, Frame.of(tokens, cache=cache)))[0]


def _of_folder(written: Path, ids: list[int], code: bool, *, read_back: bool) -> tuple[str, Tensor]:
    if importlib.util.find_spec("transformers") is None:
        reader = "caramba's own reader (transformers is not installed)"
        return reader, _of_reader(written, ids, read_back=read_back)
    import transformers

    dtype = torch.float64 if read_back else torch.float32
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(written, dtype=dtype, trust_remote_code=code)
    return f"transformers {transformers.__version__}", model.eval()(torch.tensor([ids])).logits[0]


def _apart_from_gguf(written: Path, ids: list[int], ours: Tensor) -> tuple[str, Tensor]:
    """Differences from llama.cpp's most likely next tokens at some places, or from what caramba reads at all."""
    if importlib.util.find_spec("xllamacpp") is None:
        return (
            "caramba's own reader (xllamacpp is not installed)",
            _of_reader(written, ids).log_softmax(-1) - ours,
        )
    xllamacpp: Any = importlib.import_module("xllamacpp")
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = (
        str(written),
        _TOKENS + 8,
        1,
        False,
    )
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds to 16 bits
    settings.verbosity = -1
    server = xllamacpp.Server(settings)
    apart = []
    for place in sorted({round((len(ids) - 1) * step / _PLACES) for step in range(_PLACES + 1)}):
        asked = {
            "prompt": ids[: place + 1],
            "n_predict": 1,
            "n_probs": _ASKED,
            "temperature": 0,
            "ignore_eos": True,
        }
        answer = server.handle_completions(asked)
        told = answer["choices"][0]["logprobs"]
        if told is None:  # it holds back tokens that are a part of a character
            continue
        listed = told["content"][0]["top_logprobs"]
        found = torch.tensor([one["logprob"] for one in listed])
        apart.append(found - ours[place, [one["id"] for one in listed]])
    if not apart:
        raise InputError("llama.cpp tells no likelihoods behind this text", hint="--check with another, longer one")
    return f"llama.cpp (xllamacpp {version('xllamacpp')})", torch.cat(apart)
