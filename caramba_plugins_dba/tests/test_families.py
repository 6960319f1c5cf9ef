"""Every family that is read becomes DBA: at full width the same model; one of them through a whole run."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.transplant import GQAToDBA
from caramba_plugins_llama.families import FAMILIES
from caramba_plugins_standard.generation import generate
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.loading import find_loader, lower_checkpoint
from caramba_plugins_standard.loading.filling import load_weights
from caramba_plugins_upcycle.calibration import Calibration
from caramba_plugins_upcycle.modes import Start

from caramba_core.cli import main
from caramba_core.components import Attention
from caramba_core.graph import Graph, Node
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel
from caramba_core.run.student import assemble
from caramba_core.sites import find_sites

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "pad_token_id": None,
}
MORE: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True},
    "granite": {"attention_multiplier": 0.4, "residual_multiplier": 0.3, "embedding_multiplier": 3.0},
    "glm4": {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 100.0, "rope_type": "default"}},
    "phi3": {"rope_parameters": {"partial_rotary_factor": 0.75, "rope_theta": 100.0, "rope_type": "default"}},
    "gemma3_text": {"sliding_window_pattern": 2, "query_pre_attn_scalar": 24},
    "olmo2": {"attention_bias": True},
    "cwm": {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
}


def write_folder(folder: Path, model_type: str) -> Any:
    """A random checkpoint of a family by transformers' own hand, with windows shorter than the texts here."""
    transformers = importlib.import_module("transformers")
    window = {} if FAMILIES[model_type].window == "never" else {"sliding_window": 7}
    config = transformers.AutoConfig.for_model(model_type, **{**SIZES, **window, **MORE.get(model_type, {})})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.3)
    model.save_pretrained(folder)
    return model.eval()


def whole(config: GroupedQueryAttention) -> DecoupledBottleneckAttention:
    """DBA with room for everything: pairs that turn are rotary, the rest is semantic."""
    turning = 0 if config.rope is None else sum(f != 0 for f in config.rope.frequencies(config.head_dim))
    keys = config.n_kv_heads * config.head_dim
    rotary = 2 * config.n_kv_heads * turning
    kept = {name: getattr(config, name) for name in config.inherited}
    return DecoupledBottleneckAttention(
        **{**kept, "name": config.name},
        geo_dim=rotary,
        sem_dim=keys - rotary,
        v_dim=keys,
        q_bias=config.qkv_bias,
        k_bias=config.qkv_bias,
        v_bias=config.qkv_bias,
        o_bias=config.o_bias,
    )


def student_of(teacher: LanguageModel, tokens: torch.Tensor) -> LanguageModel:
    """Every attention in closed form, nothing refitted."""

    def visit(node: Node) -> Node:
        scopes = tuple(attrs.evolve(scope, nodes=tuple(map(visit, scope.nodes))) for scope in node.scopes)
        config = whole(node.config) if isinstance(node.config, GroupedQueryAttention) else node.config
        return attrs.evolve(node, scopes=scopes, config=config)

    graph: Graph = attrs.evolve(teacher.graph, topology=visit(teacher.graph.topology))
    student = assemble(
        graph, teacher=teacher, tensors=None, trained=(), device=torch.device("cpu"), dtype=torch.float64, seed=0
    )
    settings = Start(transplant=GQAToDBA(), refit=False)
    sites = find_sites(teacher.graph, graph)
    Calibration(teacher=teacher, student=student.eval(), sites=sites, settings=settings).run([tokens])
    return student


@pytest.mark.parametrize("model_type", [name for name, one in FAMILIES.items() if one.latent_norm_eps is None])
@torch.no_grad()
def test_full_width_is_the_teacher(tmp_path: Path, model_type: str) -> None:
    write_folder(tmp_path, model_type)
    checkpoint = find_loader(tmp_path)
    teacher = build(lower_checkpoint(checkpoint), dtype=torch.float64).eval()
    load_weights(teacher, checkpoint)
    tokens = torch.randint(0, 61, (3, 40), generator=torch.Generator().manual_seed(1))
    student = student_of(teacher, tokens[:2])
    assert all(isinstance(node.config, DecoupledBottleneckAttention) for node in attentions(student))
    expected, found = teacher(tokens[2:]), student(tokens[2:])
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10 * expected.abs().max().item())
    assert torch.equal(generate(student, tokens[2:, :9], 20), generate(teacher, tokens[2:, :9], 20))


def attentions(model: LanguageModel) -> list[Node]:
    return [node for node in model.graph.walk() if isinstance(node.config, Attention)]


MANIFEST = """\
version: 1
name: gemma
model:
  from: teacher
  replace:
    attention: {type: dba, sem_dim: 6, geo_dim: 8, v_dim: 10, o_bias: true}
groups:
  - name: half
    teacher: {source: teacher}
    data: {train: train.npy, heldout: heldout.npy}
    eval: {windows: 16, context: 48}
    runs:
      - {id: convert, mode: convert, start: {tokens: 1024, max_context: 32}}
      - id: finetune
        mode: train
        steps: 40
        train: {strategy: upcycle.global, trains: [attention, norm], context: 48, batch_size: 8, lr: 3.0e-3}
"""


@torch.no_grad()
def test_gemma_3_at_three_quarters_of_its_cache(tmp_path: Path) -> None:
    """Norms around everything, norms of queries and keys, two rotary bases and windows by layer, on its own texts."""
    teacher = write_folder(tmp_path / "teacher", "gemma3_text")
    torch.manual_seed(2)
    start = torch.randint(0, 61, (64, 1))
    texts = teacher.generate(start, do_sample=True, top_k=0, max_new_tokens=96, eos_token_id=None, pad_token_id=0)
    np.save(tmp_path / "train.npy", texts[16:].flatten().numpy().astype(np.uint16))
    np.save(tmp_path / "heldout.npy", texts[:16].flatten().numpy().astype(np.uint16))
    (tmp_path / "m.yml").write_text(MANIFEST)
    with pytest.raises(SystemExit) as ended, torch.enable_grad():
        main(["run", str(tmp_path / "m.yml"), "--output", str(tmp_path / "runs")])
    assert ended.value.code == 0
    ratios = []
    for run in ("convert", "finetune"):
        summary = json.loads((tmp_path / "runs" / "gemma" / "half" / run / "summary.json").read_text())
        ratios.append(summary["perplexity_ratio"]["end"])
        assert summary["cache_bytes_per_token"]["student"] == summary["cache_bytes_per_token"]["teacher"] * 24 / 32
    assert 1 < ratios[1] < ratios[0] < 3
