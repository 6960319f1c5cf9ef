"""Every family that is read, held against transformers: a table of how far logits differ, in 32 and in 64 bits.

    python bench/families.py [--tokens 48]

Random checkpoints with four layers of width 48 are written by transformers' own hand and read by caramba.  Differences
are the largest of logits over the largest logit.  In 64 bits transformers computes norms and rotary positions so, too,
where it otherwise insists on 32.  ``dba`` is the whole model behind conversion to DBA at full width (pairs that turn
rotary, all others semantic), against caramba's own in 64 bits.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import torch
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.transplant import GQAToDBA
from caramba_plugins_llama.families import FAMILIES, Family
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.loading import find_loader, lower_checkpoint
from caramba_plugins_standard.loading.filling import load_weights
from caramba_plugins_upcycle.calibration import Calibration
from caramba_plugins_upcycle.modes import Start
from torch import Tensor

from caramba_core.graph import Node
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel
from caramba_core.run.student import assemble
from caramba_core.sites import find_sites

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "pad_token_id": None,
}
TURNED = {"partial_rotary_factor": 0.5, "rope_theta": 100.0, "rope_type": "default"}
GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.4,
    "logits_scaling": 0.7,
}


def write(folder: Path, family: Family) -> None:
    """A random checkpoint; norms and offsets are random, too, and windows shorter than the text."""
    transformers = importlib.import_module("transformers")
    more: dict[str, Any] = {} if family.window == "never" else {"sliding_window": 7}
    if family.partial_rotary:
        more["rope_parameters"] = TURNED
    if family.model_type == "granite":
        more |= GRANITE
    config = transformers.AutoConfig.for_model(family.model_type, **{**SIZES, **more})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.3)
    model.save_pretrained(folder)


class Wide:
    """``torch`` whose 32-bit types are 64-bit."""

    float = float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextlib.contextmanager
def in_64_bits(model_type: str) -> Iterator[None]:
    """Inside, transformers computes everything in 64 bits."""
    name = model_type.removesuffix("_text")
    modules = ("transformers.modeling_rope_utils", f"transformers.models.{name}.modeling_{name}")
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(mock.patch.object(importlib.import_module(module), "torch", Wide()))
        stack.enter_context(mock.patch.object(Tensor, "float", Tensor.double))
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def theirs(folder: Path, tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits of transformers."""
    transformers = importlib.import_module("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    logits: Tensor = model.eval()(tokens).logits
    return logits


def ours(folder: Path, dtype: torch.dtype) -> LanguageModel:
    """The model that caramba reads."""
    checkpoint = find_loader(folder)
    model = build(lower_checkpoint(checkpoint), dtype=dtype).eval()
    load_weights(model, checkpoint)
    return model


def whole(config: GroupedQueryAttention) -> DecoupledBottleneckAttention:
    """DBA with room for everything: pairs that turn are rotary, the rest is semantic."""
    turning = 0 if config.rope is None else sum(f != 0 for f in config.rope.frequencies(config.head_dim))
    keys, rotary = config.n_kv_heads * config.head_dim, 2 * config.n_kv_heads * turning
    offsets = {**dict.fromkeys(("q_bias", "k_bias", "v_bias"), config.qkv_bias), "o_bias": config.o_bias}
    kept = {name: getattr(config, name) for name in config.inherited}
    return DecoupledBottleneckAttention(**kept, **offsets, geo_dim=rotary, sem_dim=keys - rotary, v_dim=keys)


def converted(teacher: LanguageModel, tokens: Tensor) -> LanguageModel:
    """Every attention as DBA, in closed form."""

    def visit(node: Node) -> Node:
        scopes = tuple(attrs.evolve(scope, nodes=tuple(map(visit, scope.nodes))) for scope in node.scopes)
        config = whole(node.config) if isinstance(node.config, GroupedQueryAttention) else node.config
        return attrs.evolve(node, scopes=scopes, config=config)

    graph = attrs.evolve(teacher.graph, topology=visit(teacher.graph.topology))
    cpu = torch.device("cpu")
    student = assemble(graph, teacher=teacher, tensors=None, trained=(), device=cpu, dtype=torch.float64, seed=0).eval()
    settings = Start(transplant=GQAToDBA(), refit=False)
    sites = find_sites(teacher.graph, graph)
    Calibration(teacher=teacher, student=student, sites=sites, settings=settings).run([tokens])
    return student


def apart(found: Tensor, expected: Tensor) -> str:
    """The largest difference over the largest value."""
    return f"{((found - expected).abs().max() / expected.abs().max()).item():.1e}"


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=48)
    tokens = torch.randint(0, 97, (2, parser.parse_args().tokens), generator=torch.Generator().manual_seed(1))
    logging = importlib.import_module("transformers.utils.logging")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print("| family | 32 bits | 64 bits | dba |\n|---|---|---|---|")
    for family in FAMILIES.values():
        if family.latent_norm_eps is not None:
            continue  # a latent attention is no teacher of DBA
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write(folder, family)
            narrow = apart(ours(folder, torch.float32)(tokens), theirs(folder, tokens, torch.float32))
            teacher = ours(folder, torch.float64)
            logits = teacher(tokens)
            with in_64_bits(family.model_type):
                wide = apart(logits, theirs(folder, tokens, torch.float64))
            student = converted(teacher, tokens.flip(0))
            print(f"| `{family.model_type}` | {narrow} | {wide} | {apart(student(tokens), logits)} |", flush=True)


if __name__ == "__main__":
    main()
