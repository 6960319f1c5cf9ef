"""Exported DBA models, and Llamas that are equal to them: what the tests of the export share."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from caramba_plugins_llama.export import export
from torch import Tensor

from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel
from caramba_core.run.checkpoint import save_checkpoint
from caramba_core.run.directory import RunDirectory

VOCABULARY, WIDTH = 61, 24
GQA: dict[str, Any] = {"type": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "rope": {"theta": 500.0}}
DBA: dict[str, Any] = {**GQA, "type": "dba", "sem_dim": 6, "geo_dim": 8, "v_dim": 10}
WHOLE: dict[str, Any] = {**GQA, "type": "dba", "sem_dim": 0, "geo_dim": 16, "v_dim": 10}
"""All rotary pairs and no semantic part: ordinary attention, whose values have a low rank."""


def model_of(first: dict[str, Any], second: dict[str, Any] | None = None, *, tied: bool = True) -> dict[str, Any]:
    """The ``model:`` of a decoder of three blocks; with ``second``, the middle one has that attention."""
    norm = {"type": "rms_norm", "eps": 1e-5}
    mlp = {"type": "residual", "layers": [norm, {"type": "swiglu", "d_ff": 40}]}

    def block(attention: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"type": "residual", "layers": [norm, attention]}, mlp]

    nested: dict[str, Any] = {"type": "nested", "name": "blocks", "repeat": 3, "layers": block(first)}
    if second is not None:
        nested |= {"variants": [block(second)], "order": [0, 1, 0]}
    return {
        "type": "transformer",
        "tied_embeddings": tied,
        "embedder": {"type": "token", "vocab_size": VOCABULARY, "d_model": WIDTH},
        "topology": {"type": "stacked", "layers": [nested, norm]},
    }


def make_run(
    folder: Path,
    model: dict[str, Any],
    *,
    all_pairs: bool = False,
    pairs: Callable[[torch.Size], Tensor] | None = None,
    teacher: str | None = None,
) -> LanguageModel:
    """A run's folder as a finished run leaves it, with a random model; that model.

    Rotary pairs are drawn at random, or all of them stand in order, or they are what ``pairs`` makes of their shape.
    """
    built = build(lower(structure_model(model)), seed=7)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.mul_(8.0).add_(noise * 0.1) if "norm" not in name else parameter.add_(noise * 0.1)
        for name, buffer in built.named_buffers():
            if name.endswith(".pairs") and pairs is not None:
                buffer.copy_(pairs(buffer.shape))
            elif name.endswith(".pairs") and not all_pairs:
                buffer.copy_(torch.stack([torch.randperm(4, generator=generator)[: buffer.shape[1]] for _ in buffer]))
    folder.mkdir(parents=True)
    runs = [{"id": "r", "mode": "eval"}]
    group: dict[str, Any] = {"name": "g", "data": {"heldout": "heldout.npy"}, "runs": runs}
    if teacher is not None:
        group["teacher"] = {"source": teacher}
    manifest = {"version": 1, "name": "n", "model": model, "groups": [group]}
    (folder / "manifest.yml").write_text(json.dumps(manifest))
    save_checkpoint(RunDirectory(folder).checkpoint(1), model=built, optimizer=None, state={})
    return built.requires_grad_(False).eval()


def theirs(folder: Path, **options: Any) -> Any:
    """The exported model, loaded by transformers."""
    transformers = importlib.import_module("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options).eval()


def random_tokens(count: int, *, batch: int = 2, seed: int = 1) -> Tensor:
    """``[batch, count]``."""
    return torch.randint(0, VOCABULARY, (batch, count), generator=torch.Generator().manual_seed(seed))


def bytes_of(cache: Any) -> int:
    """What a cache of transformers holds."""
    return sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))


def continued(model: Any, prompt: Tensor, count: int, **options: Any) -> Any:
    """The greedy continuation of a prompt."""
    return model.generate(
        prompt,
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        **options,
    )


def pair_of(folder: Path, **options: Any) -> tuple[Any, Any]:
    """An exported DBA model, its middle layer ordinary attention, and transformers' own Llama that is equal to it."""
    transformers = importlib.import_module("transformers")
    make_run(folder / "run", model_of(WHOLE, GQA), all_pairs=True)
    export(folder / "run", folder / "out")
    student = theirs(folder / "out", **options)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        bos_token_id=None,
        eos_token_id=None,
        **options,
    )
    llama = transformers.LlamaForCausalLM(config)
    llama.load_state_dict(as_llama(student.state_dict()))
    return student, llama.eval()


def as_llama(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model of :func:`pair_of` under the names of a Llama."""
    renamed = {key.replace("_geo_proj", "_proj"): value for key, value in tensors.items() if "pairs" not in key}
    for key in [key for key in renamed if "v_up_proj" in key]:
        latent = key.replace("v_up_proj", "v_proj")
        renamed[latent] = renamed.pop(key) @ renamed[latent]
    return renamed
